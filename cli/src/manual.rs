//! `holdfast completions` and `holdfast man`: what a shell and a manual reader want, made from the command tree itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{command::Holdfast, output};

/// Prints completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast completions bash > /etc/bash_completion.d/holdfast
  holdfast completions zsh > \"${fpath[1]}/_holdfast\"
  holdfast completions fish > ~/.config/fish/completions/holdfast.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes manual pages, one a subcommand.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast man | man -l -
  holdfast man --dir /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write a page for every subcommand here; without it, the first page goes to standard output
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Prints the script.
/// # Errors
/// Standard output cannot be written.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Holdfast::command(), "holdfast", &mut script);
    output::print(&String::from_utf8(script).context("a completion script is text")?)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints or writes the pages.
/// # Errors
/// The directory or standard output cannot be written.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let Some(dir) = &args.dir else {
        output::print(&page(Holdfast::command(), "holdfast")?)?;
        return Ok(ExitCode::SUCCESS);
    };
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut written = 0;
    write_pages(dir, Holdfast::command(), "holdfast", &mut written)?;
    output::print(&format!("{written} pages in {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(
    dir: &Path,
    command: clap::Command,
    name: &str,
    written: &mut usize,
) -> anyhow::Result<()> {
    let file = dir.join(format!("{name}.1"));
    let below: Vec<clap::Command> = command.get_subcommands().cloned().collect();
    fs::write(&file, page(command, name)?)
        .with_context(|| format!("writing {}", file.display()))?;
    *written += 1;
    for command in below {
        if command.get_name() != "help" && !command.is_hide_set() {
            let name = format!("{name}-{}", command.get_name());
            write_pages(dir, command, &name, written)?;
        }
    }
    Ok(())
}

fn page(command: clap::Command, title: &str) -> anyhow::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).title(title).render(&mut page)?;
    String::from_utf8(page).context("a manual page is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_that_is_shown_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: Some(dir.path().to_path_buf()) }).unwrap();
        for name in ["holdfast.1", "holdfast-tx.1", "holdfast-tx-submit.1", "holdfast-check.1"] {
            let page = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(page.contains("SYNOPSIS"), "{name}");
        }
    }

    #[test]
    fn every_shell_has_a_script_that_knows_the_subcommands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Holdfast::command(), "holdfast", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("drill"), "{shell}");
        }
    }
}
