//! A process and those it has made: servers with workers are several.

use std::collections::HashMap;
use std::fs;

/// The process that a thread belongs to, of which the number may also be a process's own; `None` if there
/// is neither.
#[must_use]
pub fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// `process` first, then its children, their children, and so on, as far as they live.
#[must_use]
pub fn with_descendants(process: u32) -> Vec<u32> {
    family(vec![process])
}

/// The children of these, their children, and so on, as far as they live.
pub(super) fn descendants(processes: &[u32]) -> Vec<u32> {
    family(processes.to_vec()).split_off(processes.len())
}

/// With all descendants behind them.
fn family(mut family: Vec<u32>) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for one in all() {
        // Whoever is there already has a place.
        if !family.contains(&one.number) {
            children.entry(one.parent).or_default().push(one.number);
        }
    }
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(children.remove(&parent).unwrap_or_default());
        next += 1;
    }
    family
}

/// Whether a process of this process group has not ended.
pub(crate) fn is_group_alive(group: u32) -> bool {
    all().any(|one| one.group == group && !matches!(one.state, 'Z' | 'X'))
}

struct Process {
    number: u32,
    state: char,
    parent: u32,
    group: u32,
}

/// All that are seen here.
fn all() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc").into_iter().flatten().map_while(Result::ok).filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in parentheses, may hold anything; the others follow its last parenthesis.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some(Process {
            number,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_thread_is_one_of_its_process() {
        // SAFETY: gettid takes nothing.
        let own = || process_of(unsafe { libc::gettid() } as u32);
        let process = Some(std::process::id());
        assert_eq!((own(), std::thread::spawn(own).join().unwrap()), (process, process));
        assert_eq!(process_of(4_194_305), None, "there is no such number");
    }

    #[test]
    fn children_of_children_belong_to_the_family() {
        let mut shell = Command::new("sh")
            .args(["-c", "sh -c 'sh -c \"echo ready; read end; :\"; :'; :"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
        let family = with_descendants(shell.id());
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!((family.len(), family[0]), (3, shell.id()), "{family:?}");
    }
}
