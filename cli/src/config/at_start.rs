//! What only this machine can say: whether the data directory can be written and the addresses are free.
//!
//! Asked when a role starts and by `config check --here`, so that these mistakes, too, are told all at once. A free address may still be
//! taken a moment later; the doors say so themselves then.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use super::{Mistake, Origin, port_owner};

/// Whether `dir` exists or can be made, and takes files.
pub(crate) fn check_data_dir(key: &str, dir: &Path) -> Option<Mistake> {
    let probe = dir.join(format!(".holdfast-probe-{}", std::process::id()));
    let tried = fs::create_dir_all(dir)
        .and_then(|()| fs::write(&probe, b"probe"))
        .and_then(|()| fs::remove_file(&probe));
    let error = tried.err()?;
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
            let user = user.map_or_else(|| "this user".to_owned(), |user| user.name);
            format!("Give {user} the right to write there, or name another directory.")
        }
        io::ErrorKind::StorageFull => "Make room on that file system.".to_owned(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "A part of the path is a file; name another directory.".to_owned()
        }
        _ => "Name a directory on a local disk that this user may write.".to_owned(),
    };
    let text = format!("{key} = \"{}\" cannot be written: {error}. {remedy}", dir.display());
    Some(Mistake::new("HF1014", Origin::Machine, text))
}

/// Every address of `doors` (key and address) that cannot be bound now.
pub(crate) fn check_doors(doors: &[(&str, SocketAddr)]) -> Vec<Mistake> {
    doors.iter().filter_map(|(key, address)| check_door(key, *address)).collect()
}

fn check_door(key: &str, address: SocketAddr) -> Option<Mistake> {
    let error = TcpListener::bind(address).err()?;
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let who = port_owner::find(address.port()).map_or_else(
                || format!("Look for its owner with: ss -ltnp 'sport = :{}'", address.port()),
                |owner| format!("It is held by {owner}"),
            );
            format!(
                "{key} = \"{address}\" is in use. {who}. Stop that process, or choose another port."
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{key} = \"{address}\" is no address of this machine. Use 127.0.0.1 or [::1].")
        }
        io::ErrorKind::PermissionDenied => format!(
            "{key} = \"{address}\": this user may not listen there ({error}). Choose a port above 1023."
        ),
        _ => {
            format!("{key} = \"{address}\" cannot be listened on: {error}. Choose another address.")
        }
    };
    Some(Mistake::new("HF1015", Origin::Machine, text))
}
