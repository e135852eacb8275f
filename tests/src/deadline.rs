//! Waiting for a fact, with a limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to leave the processor to others between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks until `look` returns something; fails, naming `what`, when `limit` has passed.
pub fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_fact() {
        let mut looks = 0;
        let seen = eventually(Duration::from_secs(5), "the third look", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(seen.unwrap(), 3);
    }

    #[test]
    fn waiting_in_vain_names_what_it_waited_for() {
        let error = eventually(Duration::from_millis(5), "Godot", || None::<()>).unwrap_err();
        assert!(error.to_string().contains("Godot"), "{error}");
    }
}
