//! The life of one pod on its node.

use serde::Serialize;

/// What is done to take a pod in, in this order, and undone in reverse.
///
/// Only [`Step::Commit`] changes what the pod's traffic meets: a pod that is half prepared is neither captured nor
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Write down what is about to be changed, so that the next agent can undo it too.
    Record,
    /// Open the listeners in the pod's network namespace and publish them to the programs.
    Listen,
    /// Make accepted sockets inherit the steering mark (`net.ipv4.tcp_fwmark_accept`).
    Sysctl,
    /// The routing rules and routes that lead marked connections to `lo`.
    Route,
    /// Attach the socket lookup program to the network namespace.
    Attach,
    /// Write the pod's row: from here on it is captured.
    Commit,
}

impl Step {
    const ALL: [Self; 6] = [Self::Record, Self::Listen, Self::Sysctl, Self::Route, Self::Attach, Self::Commit];

    fn next(self) -> Option<Self> {
        let at = Self::ALL.iter().position(|step| *step == self)?;
        Self::ALL.get(at + 1).copied()
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Do this step, then report [`Enrolment::done`] or [`Enrolment::failed`].
    Do(Step),
    /// Undo this step, then report [`Enrolment::undone`], also when undoing failed: the rest must still be undone.
    Undo(Step),
    /// Everything up to commit is done: wait for [`Enrolment::commit`] or [`Enrolment::leave`].
    Ready,
    /// The pod is captured.
    Enrolled,
    /// Nothing is left of it.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Preparing,
    Committing,
    Leaving,
}

/// The state of one pod's enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    direction: Direction,
    done: Option<Step>,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self::new()
    }
}

impl Enrolment {
    /// A pod of which nothing is done.
    pub fn new() -> Self {
        Self { direction: Direction::Preparing, done: None }
    }

    /// A pod that an earlier agent may have left at any step: all of them are undone.
    pub fn abandoned() -> Self {
        Self { direction: Direction::Leaving, done: Some(Step::Commit) }
    }

    /// What to do next.
    pub fn action(&self) -> Action {
        match (self.direction, self.done) {
            (Direction::Leaving, None) => Action::Gone,
            (Direction::Leaving, Some(step)) => Action::Undo(step),
            (_, Some(Step::Commit)) => Action::Enrolled,
            (Direction::Preparing, Some(Step::Attach)) => Action::Ready,
            (_, None) => Action::Do(Step::Record),
            (_, Some(step)) => step.next().map_or(Action::Enrolled, Action::Do),
        }
    }

    /// The step that [`Self::action`] asked for is done.
    pub fn done(&mut self) {
        if let Action::Do(step) = self.action() {
            self.done = Some(step);
        }
    }

    /// The step that [`Self::action`] asked for failed, perhaps half done: it and all before it are to be undone.
    pub fn failed(&mut self) {
        if let Action::Do(step) = self.action() {
            self.done = Some(step);
            self.direction = Direction::Leaving;
        }
    }

    /// The step that [`Self::action`] asked for is undone.
    pub fn undone(&mut self) {
        if let Action::Undo(step) = self.action() {
            self.done = Step::ALL.iter().rev().find(|s| **s < step).copied();
        }
    }

    /// The certificate is there and the proxy accepts: capture the pod.
    pub fn commit(&mut self) {
        if self.action() == Action::Ready {
            self.direction = Direction::Committing;
        }
    }

    /// The pod leaves the mesh.
    pub fn leave(&mut self) {
        self.direction = Direction::Leaving;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drives the machine, failing at `fail`; returns what was done and undone, and where it came to rest.
    fn drive(mut enrolment: Enrolment, fail: Option<Step>) -> (Vec<Step>, Vec<Step>, Action) {
        let (mut done, mut undone) = (Vec::new(), Vec::new());
        for _ in 0..32 {
            match enrolment.action() {
                Action::Do(step) if Some(step) == fail => enrolment.failed(),
                Action::Do(step) => {
                    done.push(step);
                    enrolment.done();
                }
                Action::Undo(step) => {
                    undone.push(step);
                    enrolment.undone();
                }
                Action::Ready => enrolment.commit(),
                rest => return (done, undone, rest),
            }
        }
        panic!("the machine does not come to rest");
    }

    #[test]
    fn capture_comes_last() {
        let (done, undone, rest) = drive(Enrolment::new(), None);
        assert_eq!(done, Step::ALL);
        assert_eq!(undone, []);
        assert_eq!(rest, Action::Enrolled);
    }

    #[test]
    fn a_failed_step_and_all_before_it_are_undone_in_reverse() {
        for (at, step) in Step::ALL.into_iter().enumerate() {
            let (done, undone, rest) = drive(Enrolment::new(), Some(step));
            assert_eq!(done, Step::ALL[..at], "{step:?}");
            let expected: Vec<_> = Step::ALL[..=at].iter().rev().copied().collect();
            assert_eq!(undone, expected, "{step:?}");
            assert_eq!(rest, Action::Gone);
        }
    }

    #[test]
    fn leaving_is_enrolling_backwards() {
        let mut enrolment = Enrolment::new();
        while !matches!(enrolment.action(), Action::Enrolled) {
            enrolment.done();
            enrolment.commit();
        }
        enrolment.leave();
        let (_, undone, rest) = drive(enrolment, None);
        assert!(undone.iter().rev().eq(&Step::ALL));
        assert_eq!(rest, Action::Gone);
    }

    #[test]
    fn nothing_is_captured_before_commit_is_asked_for() {
        let mut enrolment = Enrolment::new();
        for _ in 0..Step::ALL.len() {
            enrolment.done();
        }
        assert_eq!(enrolment.action(), Action::Ready);
    }

    #[test]
    fn what_an_earlier_agent_left_is_undone_whole() {
        let (done, undone, rest) = drive(Enrolment::abandoned(), None);
        assert_eq!(done, []);
        assert_eq!(undone.len(), Step::ALL.len());
        assert_eq!(rest, Action::Gone);
    }
}
