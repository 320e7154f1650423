//! What a rotating disk takes to get to another place.
//!
//! It is measured on the disk itself and not on a file, whose blocks lie close together: a seek goes over
//! all of the disk. A machine that has no such disk still has the line, with the reason.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::disk::{Aligned, BLOCK};
use super::{Subject, try_each};

const NAME: &str = "rotating disk seek";
const BOOK_NS: f64 = 10_000_000.0;

/// A disk as the kernel describes it.
struct Disk {
    name: String,
    /// Its numbers, `major:minor`.
    numbers: String,
    /// What it says of itself.
    rotates: bool,
    bytes: u64,
}

/// The disks of this machine, without those that are made of files, of memory or of other disks.
fn disks(class: &Path) -> Vec<Disk> {
    let entries = fs::read_dir(class).into_iter().flatten().map_while(Result::ok);
    let disk = |entry: fs::DirEntry| {
        let path = entry.path();
        if !path.join("device").exists() {
            return None;
        }
        let field = |name: &str| {
            let text = fs::read_to_string(path.join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        // In sectors of 512 bytes, whatever the disk's own are.
        let bytes = field("size")?.parse::<u64>().ok()? * 512;
        Some(Disk {
            name: entry.file_name().to_string_lossy().into_owned(),
            numbers: field("dev")?,
            rotates: field("queue/rotational")? == "1",
            bytes,
        })
    };
    // An optical drive without a disc has no bytes.
    let mut found: Vec<Disk> =
        entries.filter_map(disk).filter(|disk| disk.bytes > BLOCK as u64).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The disk to measure: the one that holds `file`, if it rotates, or the first that does.
fn choose(disks: Vec<Disk>, file: &Path, virtual_machine: bool) -> Result<Disk, String> {
    let mut rotating: Vec<Disk> = disks.into_iter().filter(|disk| disk.rotates).collect();
    let Some(first) = rotating.first() else {
        return Err("no rotating disk here".to_owned());
    };
    if virtual_machine {
        // Drivers of virtual disks say so of all, whatever the host keeps them on.
        return Err(format!(
            "no rotating disk here that is known to be one: {} is a virtual machine's",
            first.name
        ));
    }
    let holds = |disk: &Disk| {
        let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let on = fs::metadata(file).or_else(|_| fs::metadata(directory)).ok()?.dev();
        let numbers = format!("{}:{}", libc::major(on), libc::minor(on));
        // The disk itself, or a partition, whose place is below the disk's.
        let place = fs::canonicalize(Path::new("/sys/dev/block").join(&numbers)).ok()?;
        let above = place.parent()?.file_name()?;
        (disk.numbers == numbers || above == &disk.name[..]).then_some(())
    };
    let place = rotating.iter().position(|disk| holds(disk).is_some()).unwrap_or(0);
    Ok(rotating.swap_remove(place))
}

/// Only read, and only by who may read the disk past its file systems.
fn open(disk: &Disk) -> io::Result<File> {
    let device = Path::new("/dev").join(&disk.name);
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&device);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", device.display())))
}

pub(super) fn subject(file: &Path, virtual_machine: bool) -> Subject {
    let absent = |reason| Subject::absent(NAME, BOOK_NS, reason);
    let disk = match choose(disks(Path::new("/sys/block")), file, virtual_machine) {
        Ok(disk) => disk,
        Err(reason) => return absent(reason),
    };
    let device = match open(&disk) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return absent(format!("{error}: it takes root to read a disk past its file systems"));
        }
        Err(error) => return Subject::new(NAME, BOOK_NS, "", move || Err(error)),
    };
    Subject::new(
        NAME,
        BOOK_NS,
        format!("pread(2) of 4 KiB at random places of all of /dev/{} (O_DIRECT)", disk.name),
        move || {
            let mut block = Aligned::new(BLOCK);
            let mut state = 1_u64;
            Ok(Box::new(move || {
                try_each(4, || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let place = (state >> 20) % (disk.bytes / BLOCK as u64);
                    device.read_exact_at(block.bytes(), place * BLOCK as u64)
                })
            }))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(class: &Path, name: &str, fields: &[(&str, &str)]) {
        for (field, text) in fields {
            let path = class.join(name).join(field);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn a_disk_that_rotates_is_found_among_what_the_kernel_lists() {
        let class = std::env::temp_dir().join(format!("kapok-disks-{}", std::process::id()));
        let of = |rotates| [("size", "2048\n"), ("dev", "8:0\n"), ("queue/rotational", rotates)];
        describe(&class, "loop0", &of("1\n"));
        describe(&class, "sda", &of("0\n"));
        describe(&class, "sda", &[("device/model", "an SSD")]);
        let reason = choose(disks(&class), Path::new("/"), false).err().unwrap();
        assert_eq!(reason, "no rotating disk here");

        describe(&class, "sdb", &of("1\n"));
        describe(&class, "sdb", &[("device/model", "a disk")]);
        describe(&class, "sr0", &[("size", "0"), ("dev", "11:0"), ("queue/rotational", "1")]);
        describe(&class, "sr0", &[("device/model", "a drive without a disc")]);
        let found = disks(&class);
        let names: Vec<&str> = found.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["sda", "sdb"], "neither what is made of a file nor an empty drive");
        let chosen = choose(found, Path::new("/"), false).ok().unwrap();
        assert_eq!((chosen.name.as_str(), chosen.bytes), ("sdb", 1 << 20));
        // What the driver of a virtual disk says is no reason to call its latency a seek.
        let reason = choose(disks(&class), Path::new("/"), true).err().unwrap();
        assert!(reason.starts_with("no rotating disk here that is known"), "{reason}");
        fs::remove_dir_all(&class).unwrap();
    }
}
