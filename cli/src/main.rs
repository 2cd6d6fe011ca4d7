//! `livesave`: a consistent image of a running domU, while it runs.

mod args;
mod clone;
mod compare;
mod demo;
mod disks;
mod exit;
mod extract;
mod generate;
mod inspect;
mod log;
mod merge;
mod out;
#[cfg(test)]
mod packaged;
mod periodic;
mod plan;
mod progress;
mod recover;
mod restore;
mod save;
mod signals;
mod untrack;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use args::{Cli, Command};
use clap::Parser;
use periodic::{list, prune, status};
use snapshot::{embedded, xen};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::of_command_line(&error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let code = exit::code_of(&error);
            out::error(&error, exit::hint_for(&error), code);
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Some(Command::Save(args)) => save::run(&args),
        Some(Command::Plan(args)) => plan::run(&args),
        Some(Command::Restore(args)) => restore::run(&args),
        Some(Command::Clone(args)) => clone::run(args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Verify(args)) => return verify::run(&args),
        Some(Command::Extract(args)) => extract::run(&args),
        Some(Command::Diff(args)) => compare::run(&args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Untrack(args)) => untrack::run(&args),
        Some(Command::Demo(args)) => demo::run(&args),
        Some(Command::List(args)) => list::run(&args),
        Some(Command::Prune(args)) => prune::run(&args),
        Some(Command::Status(args)) => return Ok(status::run(&args)),
        Some(Command::Recover) => return recover::run(),
        Some(Command::Generate(what)) => generate::run(&what),
        Some(Command::Guardian { args }) => {
            // The save answers Ctrl-C and its kin; the guardian waits for what comes of it.
            signals::cancel_on_signals()?;
            return Ok(xen::guardian_main(&args, &disks::CARE));
        }
        Some(Command::EmbeddedGuest { args }) => return Ok(embedded::guest_main(args)),
        None => match cli.save {
            Some(args) => save::run(&args),
            None => unreachable!("clap asks for a domain or a subcommand"),
        },
    }?;
    Ok(ExitCode::SUCCESS)
}
