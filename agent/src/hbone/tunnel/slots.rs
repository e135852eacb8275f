//! Streams to come back to.

/// Slots of streams to come back to, each at most once however often it is noted: what a peer does in the meantime must
/// not make the list grow.
#[derive(Default)]
pub(super) struct SlotSet {
    slots: Vec<usize>,
    /// Which are in `slots`, by slot.
    noted: Vec<bool>,
}

impl SlotSet {
    /// Notes `slot`.
    pub(super) fn insert(&mut self, slot: usize) {
        if self.noted.len() <= slot {
            self.noted.resize(slot + 1, false);
        }
        if !std::mem::replace(&mut self.noted[slot], true) {
            self.slots.push(slot);
        }
    }

    /// Takes all of them, in the order in which they were noted.
    pub(super) fn take(&mut self) -> Vec<usize> {
        for slot in &self.slots {
            self.noted[*slot] = false;
        }
        std::mem::take(&mut self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_once_however_often_it_was_noted_and_again_when_it_is_noted_again() {
        let mut slots = SlotSet::default();
        for slot in [3, 0, 3, 3, 0] {
            slots.insert(slot);
        }
        assert_eq!(slots.take(), [3, 0]);
        assert!(slots.take().is_empty());
        slots.insert(3);
        assert_eq!(slots.take(), [3]);
    }
}
