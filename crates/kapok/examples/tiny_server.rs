//! An echo server on fibers, as short as it gets.
//!
//! ```text
//! cargo run -p kapok --example tiny_server [ADDRESS]
//! ```
//!
//! Then `nc 127.0.0.1 PORT`, and Ctrl-C to end it.

use std::{env, io};

use kapok::net::TcpListener;
use kapok::signal::Signals;

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    kapok::Runtime::new()?.run(move || {
        let listener = TcpListener::bind(&address)?;
        let mut ctrl_c = Signals::termination()?;
        println!("listening on {}", listener.local_addr()?);
        loop {
            kapok::select! {
                accepted = listener.accept_async() => {
                    let (stream, _peer) = accepted?;
                    // Plain blocking code, on a fiber of its own.
                    kapok::spawn(move || io::copy(&mut &stream, &mut &stream)).detach();
                }
                signal = ctrl_c.recv_async() => return signal.map(drop),
            }
        }
    })
}
