//! Which instruction set the inner loops use.
//!
//! Every set runs the same chain of fused multiply-adds for every output number, so results are the same bits
//! whichever is used; sets differ in speed alone.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that this machine has: one that it lacks cannot be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// What the compiler's target guarantees.
    Scalar,
    /// AVX2, FMA and F16C; only made where they were detected.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL besides those of AVX2; only made where they were detected.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The set of this process, fixed by its first use or by [`Isa::install`].
static INSTALLED: OnceLock<Isa> = OnceLock::new();

thread_local! {
    /// The set of [`Isa::run`] on this thread.
    static SCOPED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// A name that means no instruction set of this machine. Says which there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentIsa {
    name: String,
}

impl fmt::Display for AbsentIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present: Vec<&str> = Isa::present().into_iter().map(Isa::as_str).collect();
        write!(f, "no instruction set {:?} on this machine; it has {}", self.name, present.join(", "))
    }
}

impl std::error::Error for AbsentIsa {}

/// Another set was installed, or arithmetic has begun with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaInUse(
    /// The set in use.
    pub Isa,
);

impl fmt::Display for IsaInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this process uses {} already", self.0)
    }
}

impl std::error::Error for IsaInUse {}

impl Isa {
    /// The set that every machine has: the reference for all others.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// Every set of this machine, the slowest first.
    #[must_use]
    pub fn present() -> Vec<Self> {
        let mut present = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            present.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                present.push(Self(Kind::Avx512));
            }
        }
        present
    }

    /// The fastest set of this machine.
    #[must_use]
    pub fn best() -> Self {
        Self::present().pop().unwrap_or(Self::SCALAR)
    }

    /// Its name: `scalar`, `avx2` or `avx512`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// Makes it the set of this process, once, before any arithmetic. Without that, the first operation takes the best.
    ///
    /// # Errors
    /// When another set is in use already.
    pub fn install(self) -> Result<(), IsaInUse> {
        let installed = *INSTALLED.get_or_init(|| self);
        if installed == self { Ok(()) } else { Err(IsaInUse(installed)) }
    }

    /// Runs `work` with this set for all operations that it calls on this thread; tasks that they share out use it too.
    pub fn run<R>(self, work: impl FnOnce() -> R) -> R {
        /// Puts back what was there, on a panic as well.
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SCOPED.set(self.0);
            }
        }
        let _restore = Restore(SCOPED.replace(Some(self)));
        work()
    }

    /// The set that an operation called now uses.
    #[must_use]
    pub fn current() -> Self {
        SCOPED.get().unwrap_or_else(|| *INSTALLED.get_or_init(Self::best))
    }

    pub(crate) const fn kind(self) -> Kind {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Isa {
    type Err = AbsentIsa;

    fn from_str(name: &str) -> Result<Self, AbsentIsa> {
        let found = Self::present().into_iter().find(|isa| isa.as_str() == name);
        found.ok_or_else(|| AbsentIsa { name: name.to_owned() })
    }
}

/// Defines `$name(isa, args..)`, which runs the `#[inline(always)]` function `$inner` compiled for `isa`.
macro_rules! by_isa {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($arg:tt: $type:ty),* $(,)?) = $inner:path) => {
        $(#[$attribute])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $type),*) {
            match isa.kind() {
                $crate::isa::Kind::Scalar => $inner($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Kind::Avx2 => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn compiled($($arg: $type),*) {
                        $inner($($arg),*);
                    }
                    #[expect(unsafe_code, reason = "calls the copy compiled for the detected instruction set")]
                    // SAFETY: `Kind::Avx2` exists only after its features were detected.
                    unsafe {
                        compiled($($arg),*);
                    }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Kind::Avx512 => {
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                    fn compiled($($arg: $type),*) {
                        $inner($($arg),*);
                    }
                    #[expect(unsafe_code, reason = "calls the copy compiled for the detected instruction set")]
                    // SAFETY: `Kind::Avx512` exists only after its features were detected.
                    unsafe {
                        compiled($($arg),*);
                    }
                }
            }
        }
    };
}
pub(crate) use by_isa;

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn a_set_is_found_by_its_name_and_an_absent_one_is_refused_with_a_list() {
        for isa in Isa::present() {
            assert_eq!(isa.as_str().parse(), Ok(isa));
        }
        let refusal = "amx".parse::<Isa>().unwrap_err().to_string();
        assert!(refusal.contains("\"amx\"") && refusal.contains("it has scalar"), "{refusal}");
        assert!(refusal.ends_with(Isa::best().as_str()), "{refusal}");
    }

    #[test]
    fn a_scope_ends_where_it_ends() {
        let before = Isa::current();
        for isa in Isa::present() {
            isa.run(|| {
                assert_eq!(Isa::current(), isa);
                Isa::SCALAR.run(|| assert_eq!(Isa::current(), Isa::SCALAR));
                assert_eq!(Isa::current(), isa);
            });
            let caught = std::panic::catch_unwind(|| isa.run(|| panic!("on purpose")));
            assert!(caught.is_err());
            assert_eq!(Isa::current(), before);
        }
    }
}
