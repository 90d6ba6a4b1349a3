//! Which instruction set the inner loops use.
//!
//! Both choices run the same source and round alike: every fused multiply-add is written as one, so results are
//! the same bits everywhere.

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What the compiler's target guarantees.
    Portable,
    /// AVX2, FMA and F16C; only ever made by [`Isa::detect`].
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    /// The fastest set of this machine.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Self(Kind::Avx2);
        }
        Self(Kind::Portable)
    }

    /// The set that every machine has.
    #[cfg(test)]
    pub(crate) const PORTABLE: Self = Self(Kind::Portable);

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

/// Defines `$name(isa, args..)`, which runs the `#[inline(always)]` function `$inner` compiled for `isa`.
macro_rules! by_isa {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($arg:tt: $type:ty),* $(,)?) = $inner:path) => {
        $(#[$attribute])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $type),*) {
            match isa.kind() {
                $crate::isa::Kind::Portable => $inner($($arg),*),
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
            }
        }
    };
}
pub(crate) use by_isa;
