//! Finds the `holdfast` program that the stories start.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, anyhow, ensure};

/// The program: `HOLDFAST_BIN`, or what was built beside this test, or what another profile built, or built now.
/// # Errors
/// There is none and it cannot be built. A story is never skipped for want of it.
pub fn holdfast() -> anyhow::Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow!("no holdfast program to test: {error}"))
}

fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("HOLDFAST_BIN") {
        let named = PathBuf::from(named);
        ensure!(named.is_file(), "HOLDFAST_BIN names {}, which is no file", named.display());
        return Ok(named);
    }
    // The command itself starts stories too.
    let own = std::env::current_exe().context("where this program is")?;
    if own.file_name().is_some_and(|name| name == "holdfast") {
        return Ok(own);
    }
    // The test is target/<profile>/deps/<test>; the program is target/<profile>/holdfast.
    let test = std::env::current_exe().context("where this test is")?;
    let profile =
        test.parent().and_then(Path::parent).context("the test lies in no target folder")?;
    let target = profile.parent().context("the test lies in no target folder")?;
    let places = [profile.to_owned(), target.join("debug"), target.join("release")];
    let program = |folder: &PathBuf| Some(folder.join("holdfast")).filter(|path| path.is_file());
    if let Some(found) = places.iter().find_map(program) {
        return Ok(found);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "-p", "holdfast-cli", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("starting cargo")?;
    ensure!(built.success(), "`cargo build -p holdfast-cli` ended with {built}");
    places.iter().find_map(program).with_context(|| {
        format!("it was built, and is not below {}; set HOLDFAST_BIN", target.display())
    })
}
