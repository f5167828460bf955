//! `mashines`: the command that people type. Everything is in the library; the SSH lobby runs the same tree.

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: the system gives no event queue or timer: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut session = mashines_cli::Session::local();
    let code = runtime.block_on(mashines_cli::run(std::env::args_os().skip(1), &mut session));
    // A read of standard input that nobody answered must not hold the exit.
    runtime.shutdown_background();
    ExitCode::from(code)
}
