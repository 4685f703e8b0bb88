//! What goes wrong, and whether all is well in the end.

use super::{
    agent::id,
    world::{Event, NODES, World},
};

impl World {
    pub(crate) fn fault(&mut self) {
        if !self.faults {
            return;
        }
        let ms = self.rng.range(100, 2_500);
        self.at(ms * self.slow(), Event::Fault);
        let node = self.rng.range(0, NODES as u64) as usize;
        let at = self.rng.range(0, self.known.len() as u64) as usize;
        match self.rng.range(0, 100) {
            0..15 => self.partition(node),
            15..30 => self.crash(node),
            30..38 => {
                let ms = self.rng.range(100, 8_000);
                self.agents[node].asleep = self.now + ms;
            }
            38..46 => {
                let day = 24 * 3_600_000;
                self.agents[node].wall_off = self.rng.range(0, 2 * day + 1) as i64 - day as i64;
            }
            46..56 if self.coordinator.up && !self.lonely => self.restart_coordinator(),
            56..75 => self.begin_move(at),
            75..80 => self.abort_move(at),
            80..100 => self.take_over(at),
            _ => {}
        }
    }

    /// One way or both.
    fn partition(&mut self, node: usize) {
        self.counts.partitions += 1;
        let way = self.rng.range(0, 3);
        if way != 0 {
            self.cut.insert((node, true));
        }
        if way != 1 {
            self.cut.insert((node, false));
        }
        let ms = self.rng.range(500, 12_000);
        self.at(ms, Event::Heal(node));
    }

    fn crash(&mut self, node: usize) {
        if !self.agents[node].up {
            return;
        }
        self.counts.crashes += 1;
        self.crash_agent(node);
        let ms = self.rng.range(10, 9_000);
        if self.rng.chance(400) {
            // The machine: its boot clock begins again.
            self.agents[node].booted = self.now;
        }
        self.at(ms, Event::StartAgent(node));
    }

    fn restart_coordinator(&mut self) {
        self.counts.restarts += 1;
        self.crash_coordinator();
        // Sometimes for long.
        let ms = match self.rng.chance(150) {
            true => self.rng.range(5_000, 30_000),
            false => self.rng.range(10, 1_500),
        };
        if self.rng.chance(300) {
            self.coordinator.booted = self.now;
        }
        self.at(ms, Event::StartCoordinator);
    }

    /// The coordinator is away for an hour, while all else goes on going wrong.
    pub(crate) fn lonely_hour(&mut self) {
        self.start_coordinator();
        self.crash_coordinator();
        self.lonely = true;
        self.run_until(self.now + 3_600_000);
        self.lonely = false;
        self.start_coordinator();
    }

    /// How many times slower everything happens: in a long time it shall not be more.
    pub(crate) fn slow(&self) -> u64 {
        if self.lonely { 60 } else { 1 }
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&mut self) {
        (self.faults, self.quiet) = (false, true);
        self.cut.clear();
        self.start_coordinator();
        for node in 0..NODES {
            self.agents[node].asleep = 0;
            self.start_agent(node);
        }
    }

    /// Every instance serves exactly once, where the record says, with all that was acknowledged.
    pub(crate) fn check_converged(&mut self) {
        for at in 0..self.known.len() {
            let own = self.coordinator.instances[at].own.clone();
            let serves = |node: &usize| {
                let run = self.agents[*node].runs[at].as_ref();
                run.is_some_and(|run| run.serving)
            };
            let serving: Vec<_> = (0..NODES).filter(serves).collect();
            let one = own.owner.is_some_and(|owner| {
                let run = self.agents[owner].runs[at].as_ref();
                let newest = run.is_some_and(|run| run.token.epoch == own.epoch);
                serving == [owner] && newest && self.may_act(owner, at)
            });
            if !one {
                let held = |node: usize| {
                    let core = self.agents[node].cores[at].get(&id(at));
                    core.map(|held| (held.token(), held.phase))
                };
                let held: Vec<_> = (0..NODES).map(held).collect();
                let fence = self.fence[at];
                self.violate(|| {
                    format!("instance {at} ({fence:?}) did not converge: {own:?}, serving on {serving:?}, held {held:?}")
                });
            }
        }
    }
}
