//! Finds the process that listens on a TCP port of this machine, as far as this user may look.

use std::{fs, path::Path};

/// `LISTEN` in the state column of `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Name and id of the process that listens on `port`. `None`: not found, not allowed to look, or no such file system here.
pub(crate) fn find(port: u16) -> Option<String> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((id, entry.path()))
        })
        .find(|(_, path)| holds_one_of(path, &sockets))
        .map(|(id, path)| {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            format!("process {id} ({})", name.trim())
        })
}

/// Inodes of the sockets in `table` that listen on `port`.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let port = format!("{port:04X}");
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local_port = columns.get(1)?.rsplit(':').next()?;
        (local_port == port && *columns.get(3)? == LISTEN)
            .then(|| columns.get(9).map(|i| (*i).to_owned()))?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds_one_of(process: &Path, sockets: &[String]) -> bool {
    let Ok(open) = fs::read_dir(process.join("fd")) else { return false };
    open.flatten().any(|file| {
        fs::read_link(file.path())
            .is_ok_and(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_owner_of_our_own_port_is_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let owner = find(port).expect("our own sockets can be seen");
        assert!(owner.starts_with(&format!("process {} (", std::process::id())), "{owner}");
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx rx tr tm retr uid timeout inode\n\
                     0: 0100007F:1CE9 00000000:0000 0A 0:0 0:0 0 0 0 4711 1\n\
                     1: 0100007F:1CE9 0100007F:9999 01 0:0 0:0 0 0 0 4712 1\n\
                     2: 0100007F:1CEA 00000000:0000 0A 0:0 0:0 0 0 0 4713 1\n";
        assert_eq!(listeners(table, 0x1CE9), ["4711"]);
    }
}
