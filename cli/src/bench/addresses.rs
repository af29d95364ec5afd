//! Where programs that a bench starts lie in memory: the same place for each process of one program.
//!
//! The nodes of a cluster and the servers of a database are machines of their own; a bench has them share its processors. A processor knows
//! branches by the addresses of their code, and finds those of a second PostgreSQL server, or of a second coordinator, at random other
//! ones (`ADDR_NO_RANDOMIZE`, personality(2)): each process then pays for what no machine of its own would. It is all sides' alike, and not
//! equally: who comes as one server, whose back ends are forks and lie where it lies, pays nothing.

use nix::sys::personality::{self, Persona};

/// Has everything that this process starts from now on lie where the program's other processes lie. It counts for the calling thread and
/// those it starts, so it is called before there are others. Some containers forbid it; then everything stays as it was.
pub(super) fn fix() {
    if let Ok(now) = personality::get() {
        let _fixed_or_as_before = personality::set(now | Persona::ADDR_NO_RANDOMIZE);
    }
}

/// For people: what counts for the processes that this one starts.
pub(super) fn said() -> &'static str {
    match personality::get() {
        Ok(persona) if persona.contains(Persona::ADDR_NO_RANDOMIZE) => "fixed",
        Ok(_) => "random",
        Err(_) => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Where a process that is started now has its own program.
    fn place_of_a_new_process() -> String {
        let maps = Command::new("cat").arg("/proc/self/maps").output().expect("cat is everywhere");
        let maps = String::from_utf8(maps.stdout).expect("addresses and names");
        maps.split('-').next().expect("a first address").to_owned()
    }

    #[test]
    fn what_is_started_behind_it_lies_at_one_place_each_time() {
        // A thread of its own: what it changes is nobody else's.
        let told = std::thread::spawn(|| {
            fix();
            (said(), place_of_a_new_process(), place_of_a_new_process())
        });
        let (said, first, second) = told.join().expect("no panic");
        // Where it is forbidden, it says so.
        assert!(said == "fixed" && first == second || said == "random", "{said} {first} {second}");
    }
}
