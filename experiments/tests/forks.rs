//! The workload's breeders, as processes of their own: their children come and go, and find all right.

use std::io::Read;
use std::process::{Command, Stdio};

#[test]
fn children_are_forked_and_say_that_all_is_right() {
    let mut breeder = Command::new(env!("CARGO_BIN_EXE_testbed-guest"))
        .args(["breed", "0", "7"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the workload's program runs");
    let mut said = [0; 20];
    let heard = breeder
        .stdout
        .take()
        .map(|mut out| out.read_exact(&mut said));
    let _ = breeder.kill();
    let _ = breeder.wait();
    assert!(matches!(heard, Some(Ok(()))), "{heard:?}");
    assert_eq!(said, [b'.'; 20]);
}
