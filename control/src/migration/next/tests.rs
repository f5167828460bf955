//! The decision against a model of two hosts that die, fall silent and come back at any point, and a control that is killed between
//! any two actions.

use proptest::prelude::*;

use super::*;

/// The truth at the source, behind its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtSource {
    NotTold,
    Sending,
    HandedOver,
    /// No hand-over; the guest runs on.
    RanOn,
    /// No hand-over; the monitor died.
    Died,
}

/// The truth at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtDestination {
    Nothing,
    Receiving,
    Loaded,
    Running,
    /// It ran, and its monitor died then: still `Running` for the migration.
    RanAndDied,
    Discarded,
}

/// What happens apart from the saga's own actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The monitors get on by one step.
    Progress,
    SourceDies,
    DestinationDies,
    /// The link between the monitors breaks.
    Cut,
    SourceFallsSilent,
    DestinationFallsSilent,
    SourceAnswers,
    DestinationAnswers,
    SomebodyWantsItToEnd,
    /// The saga asks and acts.
    Act,
    /// The saga acts, but its order is lost.
    ActUnheard,
    /// The saga acts and is killed before it writes what followed.
    ActAndForget,
}

#[derive(Debug, Clone)]
struct World {
    step: MigrationStep,
    source: AtSource,
    destination: AtDestination,
    source_silent: bool,
    destination_silent: bool,
    end: bool,
    /// The hand-over was sent, and reached the destination or did not.
    finished: bool,
}

impl World {
    fn new() -> Self {
        Self {
            step: MigrationStep::Reserved,
            source: AtSource::NotTold,
            destination: AtDestination::Nothing,
            source_silent: false,
            destination_silent: false,
            end: false,
            finished: false,
        }
    }

    fn source_says(&self) -> Source {
        match self.source {
            _ if self.source_silent => Source::Silent,
            AtSource::NotTold => Source::Gone,
            AtSource::Sending => Source::Active,
            AtSource::HandedOver => Source::HandedOver,
            AtSource::RanOn | AtSource::Died => Source::Failed,
        }
    }

    fn destination_says(&self) -> Destination {
        match self.destination {
            _ if self.destination_silent => Destination::Silent,
            AtDestination::Nothing => Destination::Gone,
            AtDestination::Receiving => Destination::Active,
            AtDestination::Loaded => Destination::Prepared,
            AtDestination::Running | AtDestination::RanAndDied => Destination::Running,
            AtDestination::Discarded => Destination::Failed,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Progress => self.progress(),
            Event::SourceDies => {
                if matches!(self.source, AtSource::Sending | AtSource::RanOn) {
                    self.source = AtSource::Died;
                }
            }
            Event::DestinationDies => match self.destination {
                AtDestination::Receiving | AtDestination::Loaded => {
                    self.destination = AtDestination::Discarded
                }
                AtDestination::Running => self.destination = AtDestination::RanAndDied,
                AtDestination::Nothing | AtDestination::RanAndDied | AtDestination::Discarded => {}
            },
            Event::Cut => self.cut(),
            Event::SourceFallsSilent => self.source_silent = true,
            Event::DestinationFallsSilent => self.destination_silent = true,
            Event::SourceAnswers => self.source_silent = false,
            Event::DestinationAnswers => self.destination_silent = false,
            Event::SomebodyWantsItToEnd => self.end = true,
            Event::Act => self.act(true, true),
            Event::ActUnheard => self.act(false, true),
            Event::ActAndForget => self.act(true, false),
        }
    }

    fn progress(&mut self) {
        match (self.source, self.destination) {
            (AtSource::Sending, AtDestination::Receiving) => self.destination = AtDestination::Loaded,
            (AtSource::Sending, AtDestination::Loaded) => self.source = AtSource::HandedOver,
            (AtSource::HandedOver, AtDestination::Loaded) => self.destination = AtDestination::Running,
            _ => {}
        }
    }

    /// A source that has not handed over resumes; a destination that is not loaded discards, a loaded one waits.
    fn cut(&mut self) {
        if self.source == AtSource::Sending {
            self.source = AtSource::RanOn;
        }
        if self.destination == AtDestination::Receiving {
            self.destination = AtDestination::Discarded;
        }
    }

    fn act(&mut self, heard: bool, remembered: bool) {
        let next = next(self.step, self.source_says(), self.destination_says(), self.end);
        let to_source = heard && !self.source_silent;
        let to_destination = heard && !self.destination_silent;
        let step_before = self.step;
        match next {
            Next::Prepare => {
                if to_destination && self.destination == AtDestination::Nothing {
                    self.destination = AtDestination::Receiving;
                }
                if to_destination {
                    self.step = MigrationStep::Prepared;
                }
            }
            Next::Send => {
                // Written first, whatever becomes of the order.
                self.step = MigrationStep::Moving;
                if remembered && to_source && self.source == AtSource::NotTold {
                    self.source = AtSource::Sending;
                }
            }
            Next::Wait => {}
            Next::Doubt => self.step = MigrationStep::Doubtful,
            Next::StopSource => {
                if to_source && self.source == AtSource::Sending {
                    self.source = AtSource::RanOn;
                }
            }
            Next::StopDestination => {
                if to_destination
                    && matches!(self.destination, AtDestination::Receiving | AtDestination::Loaded)
                {
                    self.destination = AtDestination::Discarded;
                }
            }
            Next::RunDestination => {
                assert_eq!(self.source, AtSource::HandedOver, "told to run though the source may");
                if to_destination && self.destination == AtDestination::Loaded {
                    self.destination = AtDestination::Running;
                }
            }
            Next::Commit => self.step = MigrationStep::Committed,
            Next::Fail => self.step = MigrationStep::Failed,
            Next::Lose => self.step = MigrationStep::Lost,
            Next::Finish => {
                if !self.source_silent {
                    self.finished = true;
                }
                self.step = MigrationStep::Completed;
            }
            Next::Done => {}
            Next::Contradiction => panic!("contradiction in {self:?}"),
        }
        if !remembered {
            self.step = step_before;
        }
    }

    fn check(&self) {
        let source_may_run = matches!(self.source, AtSource::NotTold | AtSource::Sending | AtSource::RanOn);
        let destination_ran = matches!(self.destination, AtDestination::Running | AtDestination::RanAndDied);
        assert!(!(source_may_run && destination_ran), "both run: {self:?}");
        match self.step {
            MigrationStep::Committed | MigrationStep::Completed => {
                assert!(destination_ran, "committed to a place where it never ran: {self:?}");
            }
            MigrationStep::Failed => {
                assert_ne!(self.source, AtSource::HandedOver, "failed, though nobody may run it: {self:?}");
                assert!(!destination_ran, "{self:?}");
            }
            MigrationStep::Lost => {
                assert_eq!(self.source, AtSource::HandedOver, "{self:?}");
                assert!(!destination_ran, "{self:?}");
            }
            MigrationStep::Reserved
            | MigrationStep::Prepared
            | MigrationStep::Moving
            | MigrationStep::Doubtful => {}
        }
    }

    /// Everybody answers again and nothing new goes wrong.
    fn settle(&mut self) {
        (self.source_silent, self.destination_silent) = (false, false);
        for _ in 0..40 {
            self.happen(Event::Act);
            self.check();
            self.happen(Event::Progress);
            self.check();
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    use Event::*;
    let event = prop::sample::select(vec![
        Progress,
        Progress,
        Progress,
        SourceDies,
        DestinationDies,
        Cut,
        SourceFallsSilent,
        DestinationFallsSilent,
        SourceAnswers,
        DestinationAnswers,
        SomebodyWantsItToEnd,
        Act,
        Act,
        Act,
        Act,
        ActUnheard,
        ActAndForget,
    ]);
    prop::collection::vec(event, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_dies_whenever_it_runs_once_at_most_and_the_saga_ends_in_the_truth(events in events()) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
            world.check();
        }
        world.settle();
        prop_assert!(world.step.is_final(), "it never ends: {world:?}");
    }
}

/// Each kill at each point of a move that is otherwise smooth: the matrix.
#[test]
fn a_kill_at_each_phase_ends_as_it_must() {
    use Event::*;
    let smooth = [Act, Act, Progress, Progress, Progress, Act, Act];
    for kill in [SourceDies, DestinationDies, Cut, ActAndForget, SourceFallsSilent, DestinationFallsSilent] {
        for at in 0..=smooth.len() {
            let mut world = World::new();
            for (n, event) in smooth.iter().enumerate() {
                if n == at {
                    world.happen(kill);
                    world.check();
                }
                world.happen(*event);
                world.check();
            }
            world.settle();
            assert!(world.step.is_final(), "{kill:?} at {at}: {world:?}");
        }
    }
}

#[test]
fn a_smooth_move_completes() {
    let mut world = World::new();
    world.settle();
    assert_eq!((world.step, world.finished), (MigrationStep::Completed, true));
    assert_eq!(world.destination, AtDestination::Running);
}

#[test]
fn only_a_source_that_handed_over_lets_the_destination_be_told_to_run() {
    let sources = [Source::Silent, Source::Gone, Source::Active, Source::HandedOver, Source::Failed];
    let destinations = [
        Destination::Silent,
        Destination::Gone,
        Destination::Active,
        Destination::Prepared,
        Destination::Running,
        Destination::Failed,
    ];
    for step in [MigrationStep::Moving, MigrationStep::Doubtful] {
        for source in sources {
            for destination in destinations {
                for end in [false, true] {
                    let next = next(step, source, destination, end);
                    if next == Next::RunDestination {
                        assert_eq!(source, Source::HandedOver);
                    }
                    if source == Source::HandedOver {
                        assert!(
                            !matches!(next, Next::Fail | Next::StopDestination | Next::Send),
                            "{destination:?}"
                        );
                    }
                }
            }
        }
    }
}
