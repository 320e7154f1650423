//! A scope with a deadline: ask three backends at once, and use what has come in time.
//!
//! ```text
//! cargo run -p kapok --example deadlines [MILLISECONDS]
//! ```
//!
//! The backends are fibers too, behind real sockets. The question and the places for the answers
//! are locals of the code that asks: fibers of a scope may borrow them, because the scope does not
//! return before they have ended. A read that is cancelled has given its buffer back by then.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kapok::net::{TcpListener, TcpStream};

/// The default limit.
const LIMIT: Duration = Duration::from_millis(50);

/// The backends, and how long each takes for an answer.
const BACKENDS: [(&str, Duration); 3] = [
    ("memory", Duration::from_millis(1)),
    ("disk", Duration::from_millis(10)),
    ("archive", Duration::from_secs(60)),
];

fn main() -> ExitCode {
    let limit = match std::env::args().nth(1).map(|text| (text.parse(), text)) {
        None => LIMIT,
        Some((Ok(milliseconds), _)) => Duration::from_millis(milliseconds),
        Some((Err(error), text)) => {
            eprintln!("MILLISECONDS is {text:?}: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match kapok::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.run(move || ask_all(limit)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ask_all(limit: Duration) -> io::Result<()> {
    let mut addresses = Vec::new();
    for (name, delay) in BACKENDS {
        addresses.push(start_backend(name, delay)?);
    }

    let question = String::from("where is the kapok tree?");
    let mut answers: [io::Result<String>; 3] =
        BACKENDS.map(|_| Err(io::ErrorKind::NotFound.into()));
    let began = Instant::now();
    // The deadline is around the scope, so it is around every fiber in it: whoever waits beyond it
    // gets an error instead.
    kapok::timeout(limit, || {
        kapok::scope(|scope| {
            for (&address, answer) in addresses.iter().zip(&mut answers) {
                let question = &question;
                scope.spawn(move || *answer = ask(address, question));
            }
        });
    });
    let took = began.elapsed();

    for ((name, _), answer) in BACKENDS.iter().zip(&answers) {
        match answer {
            Ok(answer) => println!("{name}: {answer}"),
            Err(error) => println!("{name}: no answer: {error}"),
        }
    }
    println!("asked for {} ms", took.as_millis());
    Ok(())
}

/// Nothing here knows of the deadline.
fn ask(address: SocketAddr, question: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Starts a backend that answers one question. It is cancelled when the main fiber ends.
fn start_backend(name: &'static str, delay: Duration) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer_one = move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut question = String::new();
        stream.read_to_string(&mut question)?;
        kapok::sleep(delay)?;
        write!(stream, "{name} has thought about {question:?}")
    };
    kapok::Builder::new().name(name).spawn(answer_one).detach();
    Ok(address)
}
