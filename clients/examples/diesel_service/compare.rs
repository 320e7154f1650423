//! All models one after the other, before the same database and under the same load.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use kapok_clients::servers::{self, Postgres};

use crate::process::{self, Memory};
use crate::table::{Cell, Measured, Table};
use crate::wrk::Wrk;
use crate::{Error, Model, page, schema};

/// The size of the comparison.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The models; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    models: Vec<Model>,
    /// How many connections, one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 500, 5000])]
    connections: Vec<usize>,
    /// What is asked for: `book` is a row, `author` twenty of a join, `buy` a row changed; `none` asks no
    /// database, and is measured with the first number of connections only.
    #[arg(long, value_delimiter = ',', default_values_t = ["none", "book", "author"].map(str::to_owned))]
    kinds: Vec<String>,
    /// Seconds that each is measured for, after a fifth as many, or one, to warm up.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Times that each is measured, in turns. The one of the median throughput is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections to the database, of every model.
    #[arg(long, default_value_t = 20)]
    pool: usize,
    /// A page whose figures are replaced by these: between the lines `<!-- figures -->` and
    /// `<!-- end of figures -->`.
    #[arg(long)]
    page: Option<PathBuf>,
}

const KINDS: [&str; 4] = ["none", "book", "author", "buy"];

pub(crate) fn compare(options: &Options) -> Result<(), Error> {
    if let Some(kind) = options.kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        return Err(format!("--kinds: {kind:?} is none of {}", KINDS.join(", ")).into());
    }
    if options.rounds == 0 || options.connections.is_empty() || options.connections.contains(&0) {
        return Err("--rounds and --connections begin at 1".into());
    }
    // Before ten minutes are spent.
    if let Some(path) = &options.page {
        page::check(path)?;
    }
    process::raise_descriptor_limit()?;
    let wrk = Wrk::new()?;
    let postgres = Postgres::start(options.pool as u32 + 10)
        .ok_or("without PostgreSQL there is nothing to compare")?;
    let database = format!("postgres://kapok@127.0.0.1:{}/postgres", postgres.port());
    schema::fill(&database)?;
    let models = if options.models.is_empty() { Model::value_variants() } else { &options.models };
    let mut cells = Vec::new();
    for kind in &options.kinds {
        let few = if kind == "none" { 1 } else { options.connections.len() };
        cells.extend(options.connections[..few].iter().map(|&count| (kind.as_str(), count)));
    }
    let mut table = Table::new(models, options.seconds, options.rounds, options.pool);
    let (began, all) = (Instant::now(), cells.len());
    for (done, (kind, connections)) in cells.into_iter().enumerate() {
        let mut rounds = Vec::new();
        // In turns, so that what changes on the machine meets them all.
        for _ in 0..options.rounds {
            let mut round = Vec::new();
            for &model in models {
                let service = Service::start(model, &database, options.pool)?;
                round.push(measure(&service, &postgres, &wrk, kind, connections, options)?);
            }
            rounds.push(round);
        }
        table.add(Cell { kind: kind.to_owned(), connections, rounds });
        let took = began.elapsed().as_secs();
        eprintln!("{kind}, {connections} connections: {} of {all}, {took} s", done + 1);
    }
    let text = table.render();
    print!("{text}");
    match &options.page {
        Some(path) => page::write(path, &text),
        None => Ok(()),
    }
}

fn measure(
    service: &Service,
    postgres: &Postgres,
    wrk: &Wrk,
    kind: &str,
    connections: usize,
    options: &Options,
) -> Result<Measured, Error> {
    let rows = if kind == "author" { schema::AUTHORS } else { schema::BOOKS };
    let load = |seconds| wrk.run(&service.address, kind, rows, connections, seconds);
    let pid = service.child.id();
    let idle = process::descriptors(pid)? + options.pool + 8;
    load((options.seconds / 5).max(1))?;
    drain(pid, idle)?;
    let (before, database_before) = (process::cpu_time(pid)?, postgres.cpu_time());
    let seen = load(options.seconds)?;
    let (used, database) = (process::cpu_time(pid)?.saturating_sub(before), postgres.cpu_time());
    drain(pid, idle)?;
    let memory = memory(service, kind, rows, connections)?;
    Ok(Measured { used, used_by_database: database.saturating_sub(database_before), memory, seen })
}

/// What a service takes with all connections open, each after one request. In the middle of a load a slow
/// machine has not connected them all.
fn memory(service: &Service, kind: &str, rows: i32, connections: usize) -> Result<Memory, Error> {
    let mut open = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut stream = TcpStream::connect(&service.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let row = number as i32 % rows + 1;
        write!(stream, "GET /{kind}/{row} HTTP/1.1\r\nHost: {}\r\n\r\n", service.address)?;
        let mut reply = [0; 4096];
        let length = stream.read(&mut reply)?;
        if !reply[..length].starts_with(b"HTTP/1.1 200") {
            return Err(format!("connection {number} of {connections} was refused its row").into());
        }
        open.push(stream);
    }
    let pid = service.child.id();
    let (memory, descriptors) = (Memory::of(pid)?, process::descriptors(pid)?);
    if descriptors < open.len() {
        return Err(format!("{descriptors} descriptors for {connections} connections").into());
    }
    Ok(memory)
}

/// Waits until a service has answered what a load has left: thousands of requests to which nobody listens
/// any more, and behind which others would wait.
fn drain(pid: u32, idle: usize) -> Result<(), Error> {
    let began = Instant::now();
    while process::descriptors(pid)? > idle {
        if began.elapsed() > Duration::from_secs(60) {
            return Err("the service does not come to the end of the load's requests".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// This program once more, serving.
struct Service {
    child: Child,
    address: String,
}

impl Service {
    fn start(model: Model, database: &str, pool: usize) -> Result<Service, Error> {
        let name = model.to_possible_value().expect("every model has a name");
        // Not by its path, which an ordinary user may not be allowed to walk.
        let mut command = servers::as_ordinary_user("/proc/self/exe");
        command.args(["serve", "--model", name.get_name(), "--database", database]);
        command.args(["--pool", &pool.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: only a system call is made between fork and exec. It ends with us.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        // From here on it is ended, whatever happens.
        let service = Service {
            child,
            address: line.trim_start_matches("listening on ").trim_end().to_owned(),
        };
        if service.address.is_empty() {
            return Err(format!("{name:?} did not start", name = name.get_name()).into());
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
