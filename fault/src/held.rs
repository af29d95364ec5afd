//! Faults of a drill, held by the process that they strike.
//!
//! [`consent`] is called once by a role whose configuration says `drill.allowed = true`. Until then [`Held::hold`] refuses and
//! [`measure`] answers nothing at the cost of one load. A fault that is held is no more than a deadline and a number: there is
//! no task that could fail to end it, and a process that was stopped or restarted comes back with a fault that is over.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest time that a fault can be held.
pub const LIMIT_MAX: Duration = Duration::from_secs(600);

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $range:expr, $unit:literal;)*) => {
        /// A fault that a process can hold against itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Held { $($(#[doc = $doc])+ $variant,)* }

        impl Held {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name at the drill door.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What its measure may be, and what it counts.
            #[must_use]
            pub fn range(self) -> (std::ops::RangeInclusive<i64>, &'static str) {
                match self { $(Self::$variant => ($range, $unit),)* }
            }
        }

        const COUNT: usize = [$(Held::$variant),*].len();
    };
}

faults! {
    /// A coordinator neither hears its peers nor speaks to them.
    Isolated = "isolated", 0..=0, "nothing";
    /// Each sync of the log takes so much longer.
    SlowDisk = "slow-disk", 1..=5_000, "ms a sync";
    /// The next sync of the log fails, as on a broken disk; the process ends by that.
    SyncFails = "sync-fails", 0..=0, "nothing";
    /// The time that this node stamps is off by so much.
    ClockSkew = "clock-skew", -86_400_000..=86_400_000, "ms";
    /// So many of a hundred calls are answered *unknown*, and not carried out.
    Errors = "errors", 1..=100, "% of the calls";
    /// So many of a hundred calls are carried out, and not answered.
    Silence = "silence", 1..=100, "% of the calls";
    /// So many of a hundred answers are given twice, and what they answer is carried out twice.
    Twice = "twice", 1..=100, "% of the calls";
    /// The data source cannot be used: connections are given up, and no new ones are made.
    ShardDown = "shard-down", 0..=0, "nothing";
}

/// Why a fault is not held. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The configuration of this process did not consent.
    NoConsent,
    /// The limit is 0, or above [`LIMIT_MAX`].
    Limit(Duration),
    /// The measure is out of range.
    Measure(Held, i64),
    /// It is held already, and ends by itself.
    Already(Held),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConsent => write!(
                f,
                "this process did not consent to drills. Set drill.allowed = true and start it again"
            ),
            Self::Limit(limit) => write!(
                f,
                "a limit of {} ms is outside 1 to {} ms",
                limit.as_millis(),
                LIMIT_MAX.as_millis()
            ),
            Self::Measure(fault, measure) => {
                let (range, unit) = fault.range();
                write!(
                    f,
                    "{measure} is outside {} to {} ({unit}) of {}",
                    range.start(),
                    range.end(),
                    fault.name()
                )
            }
            Self::Already(fault) => {
                write!(f, "{} is held already; wait for its end, or stop it", fault.name())
            }
        }
    }
}

impl std::error::Error for Refused {}

/// A fault that is held now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub fault: Held,
    /// How much of it.
    pub measure: i64,
    /// It ends by itself after so many ms.
    pub left_ms: u64,
}

struct Slot {
    /// On this process's steady clock, ms; 0 while it is not held.
    until_ms: AtomicU64,
    measure: AtomicI64,
}

static CONSENT: AtomicBool = AtomicBool::new(false);
static SLOTS: [Slot; COUNT] =
    [const { Slot { until_ms: AtomicU64::new(0), measure: AtomicI64::new(0) } }; COUNT];
/// Calls that were asked about, so that a share of a hundred is that share exactly.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Milliseconds since this was first asked, from 1.
fn tick_ms() -> u64 {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let elapsed = STARTED.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// This process may be drilled, from now on.
pub fn consent() {
    tick_ms();
    CONSENT.store(true, Ordering::Release);
}

/// Whether it may.
#[must_use]
pub fn consented() -> bool {
    CONSENT.load(Ordering::Acquire)
}

/// How much of `fault` is held now; `None` when it is not.
#[must_use]
#[inline]
pub fn measure(fault: Held) -> Option<i64> {
    if !CONSENT.load(Ordering::Relaxed) {
        return None;
    }
    fault.measure_now()
}

/// Whether `fault`, a share of a hundred, strikes the call at hand.
#[must_use]
pub fn strikes(fault: Held) -> bool {
    let Some(share) = measure(fault) else { return false };
    let asked = ASKED.fetch_add(1, Ordering::Relaxed);
    // Spread over the hundred, so that a third is every third call and not the first thirty-three.
    i64::try_from(asked % 100 * 37 % 100).unwrap_or(0) < share
}

/// Everything that is held now.
#[must_use]
pub fn standing() -> Vec<Standing> {
    let now_ms = tick_ms();
    Held::ALL
        .iter()
        .filter_map(|&fault| {
            let measure = measure(fault)?;
            let left_ms = fault.slot().until_ms.load(Ordering::Acquire).saturating_sub(now_ms);
            Some(Standing { fault, measure, left_ms })
        })
        .collect()
}

/// Ends everything that is held.
pub fn end_all() {
    Held::ALL.iter().for_each(|fault| fault.end());
}

impl Held {
    /// The fault of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fault| fault.name() == name)
    }

    fn slot(self) -> &'static Slot {
        &SLOTS[self as usize]
    }

    fn measure_now(self) -> Option<i64> {
        let until_ms = self.slot().until_ms.load(Ordering::Acquire);
        (until_ms > 0 && tick_ms() < until_ms).then(|| self.slot().measure.load(Ordering::Acquire))
    }

    /// Holds it for `limit` at most.
    /// # Errors
    /// See [`Refused`].
    pub fn hold(self, measure: i64, limit: Duration) -> Result<(), Refused> {
        if !consented() {
            return Err(Refused::NoConsent);
        }
        if limit.is_zero() || limit > LIMIT_MAX {
            return Err(Refused::Limit(limit));
        }
        if !self.range().0.contains(&measure) {
            return Err(Refused::Measure(self, measure));
        }
        if self.measure_now().is_some() {
            return Err(Refused::Already(self));
        }
        let limit_ms = u64::try_from(limit.as_millis()).expect("ten minutes at most").max(1);
        self.slot().measure.store(measure, Ordering::Release);
        self.slot().until_ms.store(tick_ms() + limit_ms, Ordering::Release);
        Ok(())
    }

    /// Ends it, if it is held.
    pub fn end(self) {
        self.slot().until_ms.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since what is held is the process's own.
    #[test]
    fn a_fault_is_held_only_with_consent_within_bounds_and_ends_by_itself() {
        let second = Duration::from_secs(1);
        assert_eq!(Held::Isolated.hold(0, second), Err(Refused::NoConsent));
        assert_eq!(measure(Held::Isolated), None);
        consent();
        assert_eq!(Held::Isolated.hold(0, Duration::ZERO), Err(Refused::Limit(Duration::ZERO)));
        let long = LIMIT_MAX + Duration::from_millis(1);
        assert_eq!(Held::Isolated.hold(0, long), Err(Refused::Limit(long)));
        assert_eq!(Held::Isolated.hold(1, second), Err(Refused::Measure(Held::Isolated, 1)));
        assert_eq!(
            Held::SlowDisk.hold(5_001, second),
            Err(Refused::Measure(Held::SlowDisk, 5_001))
        );

        assert_eq!(Held::SlowDisk.hold(5_000, LIMIT_MAX), Ok(()));
        assert_eq!(Held::SlowDisk.hold(1, second), Err(Refused::Already(Held::SlowDisk)));
        assert_eq!(measure(Held::SlowDisk), Some(5_000));
        assert_eq!(standing().len(), 1);
        assert!(standing()[0].left_ms > 590_000);
        end_all();
        assert_eq!(measure(Held::SlowDisk), None);

        assert_eq!(Held::ClockSkew.hold(-7, Duration::from_millis(30)), Ok(()));
        let until = Instant::now() + Duration::from_secs(30);
        while measure(Held::ClockSkew).is_some() {
            assert!(Instant::now() < until, "it did not end by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(standing(), []);

        assert_eq!(Held::Errors.hold(25, LIMIT_MAX), Ok(()));
        assert_eq!((0..1_000).filter(|_| strikes(Held::Errors)).count(), 250);
        assert!(!strikes(Held::Silence));
        end_all();
        assert!(!strikes(Held::Errors));
    }

    #[test]
    fn each_fault_is_found_by_its_name() {
        for fault in Held::ALL {
            assert_eq!(Held::named(fault.name()), Some(*fault));
        }
        assert_eq!(Held::named("none"), None);
    }
}
