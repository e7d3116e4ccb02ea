//! `steward man`: the manual pages.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::exit::Exit;
use crate::session::Session;

/// Print the manual page, or write those of all verbs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steward man | man -l -\n  steward man --out ./man1")]
pub(crate) struct Args {
    /// Write the pages of all verbs to this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    let command = without_help(crate::args::command());
    match args.out {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            session.out.bytes(&page)?;
        }
        Some(dir) => {
            let write = || {
                std::fs::create_dir_all(&dir)?;
                clap_mangen::generate_to(command, &dir)
            };
            write().with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            session.out.note(format!("manual pages are in {}", dir.display()));
        }
    }
    Ok(Exit::Success)
}

/// Without the verb `help`, whose pages would say once more what the others say.
fn without_help(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_verb_and_none_for_help() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(without_help(crate::args::command()), dir.path()).unwrap();
        let pages: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|page| page.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(
            pages.contains(&"steward.1".to_owned()) && pages.contains(&"steward-node-ls.1".to_owned()),
            "{pages:?}"
        );
        assert!(!pages.iter().any(|page| page.contains("help")), "{pages:?}");
    }
}
