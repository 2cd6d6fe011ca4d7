//! Prints whether a domain is in log-dirty mode: `on` or `off`.
//!
//! Xen does not tell; but switching the mode on fails if it is on. So this switches it on and,
//! if that worked, off again. A domain with a passed-through device reads as `on`.

use std::process::ExitCode;

use xen_sys::{DomainId, EnableError, Xen};

fn main() -> ExitCode {
    let domain = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .and_then(DomainId::new);
    let Some(domain) = domain else {
        eprintln!("usage: log-dirty-state DOMID");
        return ExitCode::from(2);
    };
    match state(domain) {
        Ok(state) => {
            println!("{state}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn state(domain: DomainId) -> Result<&'static str, Box<dyn std::error::Error>> {
    let xen = Xen::open()?;
    match xen.log_dirty_enable(domain) {
        Ok(()) => {
            xen.log_dirty_disable(domain)?;
            Ok("off")
        }
        Err(EnableError::AlreadyOnOrPassthrough(_)) => Ok("on"),
        Err(error) => Err(error.into()),
    }
}
