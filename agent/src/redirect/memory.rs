//! What starting took of memory and serving does not need, given back.
//!
//! Most of what an agent that has just started has resident is its own text: with each page that is touched the kernel
//! maps those around it, and reading configuration touches much that is not needed again. What is needed again comes
//! back from the page cache, without any input or output. And what the C library keeps of freed memory is returned.

use std::{fs, io};

/// Gives it back. Takes some milliseconds.
///
/// # Errors
/// When the kernel does not tell what is mapped, or refuses.
pub fn release() -> io::Result<()> {
    for (start, length) in text(&fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: the mapping is of a file, cannot be written and has no page of its own: what is dropped is read from
        // the same file when it is touched again. What is executed here comes back like that as well.
        let result =
            unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
    Ok(())
}

/// Start and length of the mappings of proc_pid_smaps(5) that are program text as it is in a file. A debugger's
/// breakpoints are pages of their own: text that has any is left alone.
fn text(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            ["Anonymous:", "0", "kB"] => found.extend(mapping.take()),
            [name, ..] if name.ends_with(':') => {}
            [range, "r-xp", _, _, inode, ..] if inode != "0" => mapping = extent(range),
            _ => mapping = None,
        }
    }
    found
}

fn extent(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(range: &str, permissions: &str, inode: &str, path: &str, anonymous: u32) -> String {
        format!(
            "{range} {permissions} 00571000 fe:00 {inode}   {path}\nSize: 16 kB\nRss: 8 kB\n\
             Anonymous:             {anonymous} kB\nVmFlags: rd ex mr mw me sd\n"
        )
    }

    #[test]
    fn text_of_files_is_found_and_nothing_else() {
        let smaps = [
            mapping("1000-2000", "r--p", "7", "/usr/bin/culvert", 0),
            mapping("2000-5000", "r-xp", "7", "/usr/bin/culvert", 0),
            mapping("5000-6000", "rw-p", "7", "/usr/bin/culvert", 0),
            mapping("6000-7000", "r-xp", "0", "", 0),
            mapping("7000-9000", "r-xp", "9", "/lib/with a blank.so", 0),
            mapping("9000-a000", "r-xp", "9", "/lib/breakpoint.so", 4),
            mapping("b000-c000", "r-xp", "0", "[vdso]", 0),
        ];
        assert_eq!(text(&smaps.concat()), [(0x2000, 0x3000), (0x7000, 0x2000)]);
    }

    #[test]
    fn what_was_given_back_is_there_when_it_is_needed() {
        let before: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        assert!(!text(&fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
        release().unwrap();
        assert_eq!(before.concat(), (0..10_000).map(|n| n.to_string()).collect::<String>());
    }
}
