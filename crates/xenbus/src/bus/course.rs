//! The course of one device at one end: its progress and its next step. It knows no store.

use crate::side::Side;
use crate::state::{DeviceUse, EndAction, IllegalMove, PeerState, react};
use xen_io::xenbus::State;

/// The most times that a peer may begin anew without being connected in between.
pub(super) const RESTARTS_MAX: u32 = 8;

/// The course of a device.
pub(super) struct Course {
    side: Side,
    own: State,
    standing: DeviceUse,
    /// True if the driver may hold something of the peer's.
    held: bool,
    /// It is Connected by a process that has ended, and not yet taken over.
    orphan: bool,
    /// The peer's state that the last complaint was about, so that each is made once.
    complained: Option<State>,
    /// True if this end has read all that the peer has said when it connected.
    refreshed: bool,
    restarts: u32,
    /// True if its driver has said that it waits.
    waits: bool,
}

/// The next step of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CourseStep {
    /// Take over the connection of a process that has ended.
    Adopt,
    /// An action of the tables.
    Act(EndAction),
}

impl Course {
    /// The course of a device that was found in this state; `None` where it is over.
    pub(super) fn found(side: Side, state: State, online: bool) -> Option<Self> {
        if state == State::Closed && !online {
            return None;
        }
        let wanted = online && state != State::Closing;
        let own = match (side, state) {
            // Said by a process that has ended, and not acted upon: said again.
            (Side::Backend, State::InitWait | State::Initialised) | (_, State::Unknown) => {
                State::Initialising
            }
            (_, state) => state,
        };
        Some(Self {
            side,
            own,
            standing: if wanted { DeviceUse::Wanted } else { DeviceUse::Leaving },
            // By a process that has ended and may have left something for its successor to take away.
            held: side == Side::Backend && own != State::Initialising && own != State::Closed,
            orphan: side == Side::Backend && state == State::Connected,
            complained: None,
            refreshed: false,
            restarts: 0,
            waits: false,
        })
    }

    pub(super) fn own_state(&self) -> State {
        self.own
    }

    /// True if its driver has said that it waits for something.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// True if the driver may hold something of the peer's.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// True if there are rings of a driver that has ended: the backend gives them up when this end closes.
    pub(super) fn has_lost_rings(&self) -> bool {
        self.side == Side::Frontend && !matches!(self.own, State::Initialising | State::Closed)
    }

    /// True if a state of its node means that the device was taken away and made again before this end could look,
    /// which did not write that.
    pub(super) fn is_another(&self, state: State) -> bool {
        state == State::Initialising && self.own != State::Initialising
    }

    /// True if the device may be in use: then its driver is asked before it closes.
    pub(super) fn may_be_in_use(&self) -> bool {
        self.side == Side::Frontend
            && self.own == State::Connected
            && self.standing == DeviceUse::Wanted
    }

    /// True if the other end's reason for closing is to be told.
    pub(super) fn wants_peer_error(&self) -> bool {
        self.standing == DeviceUse::Wanted
    }

    /// The state that opening leads to.
    pub(super) fn opened(&self) -> State {
        match self.side {
            Side::Frontend => State::Initialised,
            Side::Backend => State::InitWait,
        }
    }

    /// Notes what the toolstack has written into the node of its state, and whether it wants the device.
    pub(super) fn note(&mut self, state: State, online: bool) {
        let asked =
            self.side == Side::Backend && state == State::Closing && self.own != State::Closing;
        if !online || asked {
            self.note_unwanted();
        }
        // It was made anew and is to go already: this end has to say once more that it is closed.
        if asked && self.own == State::Closed {
            self.own = State::Closing;
        }
        if self.side == Side::Backend
            && state == State::Reconfiguring
            && matches!(self.own, State::Connected | State::Reconfigured)
        {
            self.own = State::Reconfiguring;
        }
    }

    /// The next step, with the peer as it is.
    pub(super) fn next(&mut self, peer: PeerState) -> Result<CourseStep, IllegalMove> {
        // While its driver waits for something the peer may have left: nothing is to be taken over then.
        let is_left = self.waits && !peer.has_rings();
        if self.orphan && self.standing == DeviceUse::Wanted && !is_left {
            return Ok(CourseStep::Adopt);
        }
        self.waits = false;
        self.orphan = self.orphan && !is_left;
        let action = react(self.side, self.own, peer, self.standing)?;
        if !matches!(action, EndAction::Stay | EndAction::Refresh | EndAction::Close) {
            self.refreshed = false;
            self.complained = None;
        }
        Ok(CourseStep::Act(action))
    }

    /// Notes that the driver may hold resources of the peer.
    pub(super) fn note_held(&mut self) {
        self.held = true;
    }

    /// Notes that the driver waits for something.
    pub(super) fn wait(&mut self) {
        self.waits = true;
    }

    /// Notes that the device is not wanted any more, at this end or by the toolstack.
    pub(super) fn note_unwanted(&mut self) {
        self.standing = DeviceUse::Leaving;
    }

    /// Ends the takeover of a device from a process that has ended: it is done, or given up.
    pub(super) fn end_adoption(&mut self) {
        self.orphan = false;
        self.waits = false;
    }

    /// Notes that all resources of the peer are given back.
    pub(super) fn note_released(&mut self) {
        self.held = false;
        self.orphan = false;
    }

    /// Notes that the driver's step to this state is done.
    pub(super) fn complete(&mut self, next: State) {
        if next == State::Connected {
            self.restarts = 0;
            self.refreshed = true;
        }
    }

    /// Sets the state.
    pub(super) fn enter(&mut self, next: State) {
        self.own = next;
    }

    /// Begins anew; false if that has happened too often.
    pub(super) fn count_restart(&mut self) -> bool {
        self.restarts += 1;
        self.restarts <= RESTARTS_MAX
    }

    /// True if the peer has written its state once more; the state that this end has read when it
    /// connected does not count.
    pub(super) fn take_change(&mut self) -> bool {
        !std::mem::take(&mut self.refreshed)
    }

    /// True if a complaint about the peer's state is the first one.
    pub(super) fn take_complaint(&mut self, peer: State) -> bool {
        self.complained.replace(peer) != Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfiguring};

    fn found(side: Side, state: State) -> Course {
        Course::found(side, state, true).unwrap()
    }

    #[test]
    fn a_backend_goes_on_where_a_process_has_ended() {
        for said in [InitWait, Initialised, State::Unknown] {
            let course = found(Side::Backend, said);
            assert_eq!((course.own_state(), course.is_held()), (Initialising, false), "{said}");
        }
        let mut course = found(Side::Backend, Connected);
        assert!(course.is_held());
        assert_eq!(course.next(PeerState::Is(Connected)), Ok(CourseStep::Adopt));
        course.end_adoption();
        assert_eq!(course.next(PeerState::Is(Connected)), Ok(CourseStep::Act(EndAction::Stay)));
    }

    #[test]
    fn nothing_is_taken_over_from_a_peer_that_has_left_meanwhile() {
        let mut course = found(Side::Backend, Connected);
        course.wait();
        assert_eq!(course.next(PeerState::Is(Connected)), Ok(CourseStep::Adopt));
        assert_eq!(course.next(PeerState::Gone), Ok(CourseStep::Act(EndAction::Release)));
        assert!(!course.waits());
        assert_eq!(
            course.next(PeerState::Is(Connected)),
            Ok(CourseStep::Act(EndAction::Stay)),
            "no orphan"
        );
        let mut course = Course::found(Side::Backend, Connected, false).unwrap();
        assert_eq!(
            course.next(PeerState::Is(Connected)),
            Ok(CourseStep::Act(EndAction::Close)),
            "not wanted"
        );
    }

    #[test]
    fn a_device_that_is_closed_and_not_wanted_is_over() {
        assert!(Course::found(Side::Backend, Closed, false).is_none());
        assert!(Course::found(Side::Backend, Closed, true).is_some());
        assert!(
            Course::found(Side::Backend, Closing, true)
                .is_some_and(|course| !course.wants_peer_error())
        );
    }

    #[test]
    fn a_frontend_has_lost_the_rings_of_a_driver_that_has_ended() {
        for (state, lost) in
            [(Initialising, false), (Closed, false), (Connected, true), (InitWait, true)]
        {
            assert_eq!(found(Side::Frontend, state).has_lost_rings(), lost, "{state}");
            assert!(!found(Side::Backend, state).has_lost_rings());
        }
        assert!(found(Side::Frontend, Connected).is_another(Initialising));
        assert!(!found(Side::Frontend, Initialising).is_another(Initialising));
        let mut backend = found(Side::Backend, Initialising);
        backend.enter(InitWait);
        assert!(backend.is_another(Initialising));
        assert!(!found(Side::Backend, Connected).is_another(Closing));
    }

    #[test]
    fn the_toolstack_asks_a_backend_through_its_state() {
        let mut course = found(Side::Backend, Connected);
        course.note(Reconfiguring, true);
        assert_eq!((course.own_state(), course.wants_peer_error()), (Reconfiguring, true));
        course.note(Closing, true);
        assert!(!course.wants_peer_error(), "it is to close");
        let mut course = found(Side::Backend, Connected);
        course.note(Connected, false);
        assert!(!course.wants_peer_error(), "online is 0");
        let mut course = found(Side::Frontend, Connected);
        course.note(Closing, true);
        assert!(course.wants_peer_error(), "a frontend is asked through its backend");
    }

    #[test]
    fn a_closed_backend_that_is_asked_to_close_says_so_once_more() {
        let mut course = found(Side::Backend, Connected);
        course.enter(Closed);
        course.note(Closing, false);
        for peer in [PeerState::Gone, PeerState::Is(Initialising), PeerState::Is(Closed)] {
            assert_eq!(course.next(peer), Ok(CourseStep::Act(EndAction::Release)));
        }
    }

    #[test]
    fn a_complaint_is_made_once_until_there_is_progress() {
        let mut course = found(Side::Frontend, Connected);
        assert!(course.take_complaint(Closing));
        assert!(!course.take_complaint(Closing));
        assert_eq!(course.next(PeerState::Is(Connected)), Ok(CourseStep::Act(EndAction::Refresh)));
        assert!(!course.take_complaint(Closing));
        assert_eq!(
            course.next(PeerState::Is(Reconfiguring)),
            Ok(CourseStep::Act(EndAction::Reconfigure(Reconfiguring)))
        );
        assert!(course.take_complaint(Closing));
    }

    #[test]
    fn what_was_read_while_connecting_is_no_change() {
        let mut course = found(Side::Frontend, Initialised);
        course.complete(Connected);
        course.enter(Connected);
        assert!(!course.take_change());
        assert!(course.take_change());
    }

    #[test]
    fn a_peer_begins_anew_so_often_unless_it_connects() {
        let mut course = found(Side::Backend, InitWait);
        for _ in 0..2 {
            assert!((0..RESTARTS_MAX).all(|_| course.count_restart()));
            assert!(!course.count_restart());
            course.complete(Connected);
        }
    }

    #[test]
    fn only_a_wanted_frontend_is_asked_before_it_closes() {
        let mut course = found(Side::Frontend, Connected);
        assert!(course.may_be_in_use() && !found(Side::Backend, Connected).may_be_in_use());
        course.note_unwanted();
        assert!(!course.may_be_in_use());
    }
}
