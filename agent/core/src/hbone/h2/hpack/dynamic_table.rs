//! The decoder's dynamic table (RFC 7541 §2.3.2): entries in one buffer, which grows only as it is used.

use std::collections::VecDeque;

use super::DEFAULT_TABLE_SIZE;

/// What an entry costs besides its name and value (RFC 7541 §4.1).
const OVERHEAD: usize = 32;

/// Newest entry first.
#[derive(Debug)]
pub(super) struct DynamicTable {
    /// Names and values of the entries, oldest first; those before the oldest entry's are dead.
    bytes: Vec<u8>,
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

/// Lengths fit, as no entry is larger than the table, which never exceeds [`DEFAULT_TABLE_SIZE`].
#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: u32,
    name: u16,
    value: u16,
}

impl Entry {
    fn size(self) -> usize {
        usize::from(self.name) + usize::from(self.value) + OVERHEAD
    }
}

impl Default for DynamicTable {
    fn default() -> Self {
        Self { bytes: Vec::new(), entries: VecDeque::new(), size: 0, max_size: DEFAULT_TABLE_SIZE as usize }
    }
}

impl DynamicTable {
    /// Name and value of the entry at `index`, 0 being the newest.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let entry = self.entries.get(index)?;
        let from_name = self.bytes.get(entry.offset as usize..)?;
        let (name, from_value) = from_name.split_at_checked(usize::from(entry.name))?;
        Some((name, from_value.get(..usize::from(entry.value))?))
    }

    /// Adds an entry, evicting as many as it takes. One that is too large empties the table (RFC 7541 §4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict_to(self.max_size.saturating_sub(size));
        if size > self.max_size {
            return;
        }
        self.compact();
        let offset = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_front(Entry { offset, name: name.len() as u16, value: value.len() as u16 });
        self.size += size;
    }

    /// Sets the size the entries may take.
    pub(super) fn resize(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.evict_to(max_size);
        if self.entries.is_empty() {
            self.bytes = Vec::new();
            self.entries = VecDeque::new();
        }
    }

    pub(super) fn heap_size(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    fn evict_to(&mut self, size: usize) {
        while self.size > size {
            match self.entries.pop_back() {
                Some(entry) => self.size -= entry.size(),
                None => self.size = 0,
            }
        }
    }

    /// Drops dead bytes once they are as many as the live ones: each byte is moved at most once on average.
    fn compact(&mut self) {
        let dead = self.entries.back().map_or(self.bytes.len(), |oldest| oldest.offset as usize);
        if dead * 2 >= self.bytes.len() {
            self.bytes.drain(..dead);
            self.entries.iter_mut().for_each(|entry| entry.offset -= dead as u32);
        }
    }
}
