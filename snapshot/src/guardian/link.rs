//! The save's side: starts the guardian and knows whether it lives.

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::journal::Journal;
use super::watch::READY;

/// How long a guardian may take to be ready.
const START: Duration = Duration::from_secs(20);
/// How long one may take to see that nothing is to be done.
const END: Duration = Duration::from_secs(2);

/// A guardian could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such process.
    #[error("Failed to start the guardian process")]
    Spawn(#[source] io::Error),
    /// It did not say that it is ready; it has said why itself.
    #[error("The guardian process did not get ready")]
    NotReady(#[source] io::Error),
}

/// A running guardian. Dropped, it ends: with nothing to do if the journal says so.
#[derive(Debug)]
pub struct Link {
    socket: UnixStream,
    guardian: Child,
}

impl Link {
    /// Runs `program` with `arguments` as the guardian of the save in `journal`, and waits until
    /// it is ready. It finds our socket as its standard input, the journal as its standard output,
    /// and calls [`super::serve`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        program: &Path,
        arguments: &[OsString],
        journal: &Journal,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = UnixStream::pair().map_err(StartError::Spawn)?;
        let journal = journal.file().try_clone().map_err(StartError::Spawn)?;
        let guardian = Command::new(program)
            .arg0("livesave-guardian")
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(journal))
            // It must not hold the file system that the save was called from.
            .current_dir("/")
            .spawn()
            .map_err(StartError::Spawn)?;
        crate::fault::guardian_is(guardian.id());
        // From here on dropping it ends and reaps the process.
        let mut link = Self {
            socket: ours,
            guardian,
        };
        link.wait_ready().map_err(StartError::NotReady)?;
        Ok(link)
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        self.socket.set_read_timeout(Some(START))?;
        let mut word = [0];
        self.socket.read_exact(&mut word)?;
        if word != READY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// Whether the guardian lives.
    pub fn lives(&mut self) -> bool {
        matches!(self.guardian.try_wait(), Ok(None))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        // Waited for, so that the lock that it shares is free when we have ended. One that has
        // something to put right takes its time and is left to it.
        let began = Instant::now();
        while self.lives() && began.elapsed() < END {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
