//! Is this machine fit for a node: processors, memory, limits, clock, network settings. Reads `/proc` and `/sys`, changes nothing.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use super::finding::{Finding, State, state};

/// Sessions, connections and files of a busy node.
const OPEN_FILES_WANTED: u64 = 65_536;
const OPEN_FILES_LEAST: u64 = 4_096;
/// The state of two million open transactions, and room.
const MEMORY_WANTED_MIB: u64 = 4_096;
const MEMORY_LEAST_MIB: u64 = 512;
const BACKLOG_WANTED: u64 = 1_024;
/// Of the roles and of PostgreSQL together.
const THREADS_WANTED: u64 = 8_192;
/// 2026-01-01: a clock before this program was written is wrong.
const WRITTEN_AT_S: u64 = 1_767_225_600;
/// The doors of all roles.
const DOORS: std::ops::RangeInclusive<u64> = 6_543..=7_421;

/// Looks at everything.
pub(super) fn check() -> Vec<Finding> {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let swap = read("/proc/swaps").lines().count() > 1;
    vec![
        processors(count),
        memory(&read("/proc/meminfo")),
        open_files(&read("/proc/self/limits")),
        clock(now),
        user(nix::unistd::geteuid().is_root()),
        clock_source(&read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        backlog(number(&read("/proc/sys/net/core/somaxconn"))),
        outgoing_ports(&read("/proc/sys/net/ipv4/ip_local_port_range")),
        swappiness(number(&read("/proc/sys/vm/swappiness")), swap),
        half_open(number(&read("/proc/sys/net/ipv4/tcp_max_syn_backlog"))),
        huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        files_of_all(number(&read("/proc/sys/fs/file-max"))),
        threads(number(&read("/proc/sys/kernel/threads-max"))),
        chance(number(&read("/proc/sys/kernel/random/entropy_avail"))),
        load(&read("/proc/loadavg"), count),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn unread(check: &'static str) -> Finding {
    Finding::new(check, "", State::Skipped, "the kernel does not tell it here", "")
}

fn processors(count: usize) -> Finding {
    let remedy =
        "Give the node two processors or more: the log's writer and the doors work side by side.";
    Finding::new(
        "machine.processors",
        "",
        state(count >= 2, State::Warning),
        format!("{count} for this process"),
        remedy,
    )
}

fn memory(info: &str) -> Finding {
    let of = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1_024)
    };
    let Some(available) = of("MemAvailable:") else { return unread("machine.memory") };
    let remedy = "Free memory or move the node: an open transaction takes about 1 KiB beside its payloads, and a snapshot is made beside the state.";
    let state = match available {
        MEMORY_WANTED_MIB.. => State::Ok,
        MEMORY_LEAST_MIB.. => State::Warning,
        _ => State::Failed,
    };
    Finding::new("machine.memory", "", state, format!("{available} MiB available"), remedy)
}

fn open_files(limits: &str) -> Finding {
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3));
    let soft =
        soft.map(|text| if text == "unlimited" { u64::MAX } else { number(text).unwrap_or(0) });
    let Some(soft) = soft else { return unread("machine.open_files") };
    let state = match soft {
        OPEN_FILES_WANTED.. => State::Ok,
        OPEN_FILES_LEAST.. => State::Warning,
        _ => State::Failed,
    };
    let remedy = "Raise it to 65,536: LimitNOFILE= in the systemd unit, or ulimit -n. Each session and connection takes one.";
    Finding::new("machine.open_files", "", state, format!("{soft} files may be open"), remedy)
}

fn clock(now: u64) -> Finding {
    let remedy = "Set the clock and run an NTP service (chrony). Deadlines are judged by it.";
    let shown = crate::output::rfc3339(now.saturating_mul(1_000));
    Finding::new("machine.clock", "", state(now >= WRITTEN_AT_S, State::Failed), shown, remedy)
}

fn user(root: bool) -> Finding {
    let remedy = "Run the roles as a user of their own (User= in the systemd unit).";
    let found = if root { "this is root" } else { "not root" };
    Finding::new("machine.user", "", state(!root, State::Warning), found, remedy)
}

fn clock_source(name: &str) -> Finding {
    if name.is_empty() {
        return unread("machine.clock_source");
    }
    let fast =
        ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"].contains(&name);
    let remedy =
        "Choose tsc or the hypervisor's own clock: each reading of a slow one is a system call.";
    Finding::new("machine.clock_source", "", state(fast, State::Warning), name, remedy)
}

fn backlog(most: Option<u64>) -> Finding {
    let Some(most) = most else { return unread("machine.backlog") };
    let remedy = "sysctl -w net.core.somaxconn=1024: after a failover everybody connects at once.";
    let state = state(most >= BACKLOG_WANTED, State::Warning);
    Finding::new("machine.backlog", "", state, format!("{most} connections may wait"), remedy)
}

fn outgoing_ports(range: &str) -> Finding {
    let mut bounds = range.split_whitespace().filter_map(number);
    let (Some(first), Some(last)) = (bounds.next(), bounds.next()) else {
        return unread("machine.outgoing_ports");
    };
    let apart = first > *DOORS.end() || last < *DOORS.start();
    let remedy = "Keep net.ipv4.ip_local_port_range above 7421: an outgoing connection could take a door's port while a node restarts.";
    let found = format!("outgoing connections use {first} to {last}");
    Finding::new("machine.outgoing_ports", "", state(apart, State::Failed), found, remedy)
}

fn swappiness(value: Option<u64>, swap: bool) -> Finding {
    let Some(value) = value else { return unread("machine.swappiness") };
    let remedy = "sysctl -w vm.swappiness=1, or no swap: a leader that waits for a swapped page loses its term.";
    let sound = !swap || value <= 10;
    let found = format!("vm.swappiness = {value}, swap {}", if swap { "on" } else { "off" });
    Finding::new("machine.swappiness", "", state(sound, State::Warning), found, remedy)
}

fn half_open(most: Option<u64>) -> Finding {
    let Some(most) = most else { return unread("machine.half_open") };
    let remedy = "sysctl -w net.ipv4.tcp_max_syn_backlog=1024: connections that are not yet made count apart from those that wait.";
    let state = state(most >= BACKLOG_WANTED, State::Warning);
    Finding::new("machine.half_open", "", state, format!("{most} may be half open"), remedy)
}

fn huge_pages(choice: &str) -> Finding {
    if choice.is_empty() {
        return unread("machine.huge_pages");
    }
    let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: memory grows in steps of 2 MiB, and making them stops the process now and then.";
    let state = state(!choice.contains("[always]"), State::Warning);
    Finding::new("machine.huge_pages", "", state, choice, remedy)
}

fn files_of_all(most: Option<u64>) -> Finding {
    let Some(most) = most else { return unread("machine.files_of_all") };
    let remedy = "Raise fs.file-max: all processes of the machine share it, PostgreSQL too.";
    let state = state(most >= 2 * OPEN_FILES_WANTED, State::Warning);
    let found = format!("{most} files may be open on the whole machine");
    Finding::new("machine.files_of_all", "", state, found, remedy)
}

fn threads(most: Option<u64>) -> Finding {
    let Some(most) = most else { return unread("machine.threads") };
    let remedy = "Raise kernel.threads-max: each blocking write takes a thread, and so does each connection of PostgreSQL.";
    let state = state(most >= THREADS_WANTED, State::Warning);
    let found = format!("{most} threads may run on the whole machine");
    Finding::new("machine.threads", "", state, found, remedy)
}

fn chance(bits: Option<u64>) -> Finding {
    let Some(bits) = bits else { return unread("machine.chance") };
    let remedy = "Give the machine a source of chance (virtio-rng, rngd): handshakes and ids wait for it after a start.";
    let found = format!("{bits} bits of chance are ready");
    Finding::new("machine.chance", "", state(bits >= 128, State::Warning), found, remedy)
}

fn load(averages: &str, count: usize) -> Finding {
    let last_minute = averages.split_whitespace().next().and_then(|load| load.parse::<f64>().ok());
    let Some(load) = last_minute else { return unread("machine.load") };
    let remedy = "Find what else runs here: a leader that is not scheduled for a heartbeat or two loses its term.";
    let state = state(load <= 2.0 * count as f64, State::Warning);
    let found = format!("{load} processes want {count} processors");
    Finding::new("machine.load", "", state, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::{super::finding::assert_told, *};

    #[test]
    fn outgoing_ports_must_leave_the_doors_alone() {
        assert_eq!(outgoing_ports("32768\t60999").state, State::Ok);
        assert_eq!(outgoing_ports("1024 65535").state, State::Failed);
        assert_eq!(outgoing_ports("7421 65535").state, State::Failed);
        assert_eq!(outgoing_ports("7422 65535").state, State::Ok);
        assert_eq!(outgoing_ports("").state, State::Skipped);
    }

    #[test]
    fn what_is_well_needs_no_remedy_and_what_is_not_has_one() {
        for finding in check() {
            let silent = matches!(finding.state, State::Ok | State::Skipped);
            assert_eq!(finding.remedy.is_empty(), silent, "{finding:?}");
        }
    }

    /// A machine on which each check is at its bound, and one past it.
    fn machine(past: u64) -> Vec<Finding> {
        let kib = |mib: u64| format!("MemTotal: 1 kB\nMemAvailable: {} kB", mib * 1_024);
        let files = |soft: u64| format!("Max open files            {soft}   1048576   files");
        let pages = ["always [madvise] never", "[always] madvise never"];
        let load = format!("{}.0 0.1 0.1 1/100 7", 4 + past);
        vec![
            processors(usize::try_from(2 - past).unwrap()),
            memory(&kib(MEMORY_WANTED_MIB - past)),
            open_files(&files(OPEN_FILES_WANTED - past)),
            clock(WRITTEN_AT_S - past),
            user(past == 1),
            clock_source(["tsc", "hpet"][past as usize]),
            backlog(Some(BACKLOG_WANTED - past)),
            outgoing_ports(&format!("{} 65535", DOORS.end() + 1 - past)),
            swappiness(Some(10 + past), true),
            half_open(Some(BACKLOG_WANTED - past)),
            huge_pages(pages[past as usize]),
            files_of_all(Some(2 * OPEN_FILES_WANTED - past)),
            threads(Some(THREADS_WANTED - past)),
            chance(Some(128 - past)),
            super::load(&load, 2),
        ]
    }

    #[test]
    fn every_check_of_a_machine_passes_at_its_bound_and_tells_what_is_past_it() {
        let names = |found: &[Finding]| found.iter().map(|one| one.check).collect::<Vec<_>>();
        let (at, past) = (machine(0), machine(1));
        assert_eq!((names(&at), names(&past)), (names(&check()), names(&check())), "each is here");
        at.iter().for_each(|one| assert_eq!(one.state, State::Ok, "{one:?}"));
        past.iter().for_each(assert_told);
        let failed = [memory("MemAvailable: 524287 kB"), open_files("Max open files 4095 1 files")];
        failed.iter().for_each(|one| assert_eq!(one.state, State::Failed, "{one:?}"));
        assert_eq!(swappiness(Some(60), false).state, State::Ok, "nothing is swapped");
        assert_eq!(super::load("", 2).state, State::Skipped);
    }
}
