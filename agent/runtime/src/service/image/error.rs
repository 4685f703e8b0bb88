//! Why an image or a delta cannot be taken.

/// Bytes that are no image, or one that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes begin otherwise.
    #[error("not {0}")]
    Magic(&'static str),
    /// A form that this version cannot read.
    #[error("the image has format {found}; this version reads {known}: update the software")]
    Version {
        /// The format's number.
        found: u16,
        /// The number that is known.
        known: u16,
    },
    /// Bytes are missing at the end.
    #[error("the image ends in section `{0}`: it was cut short")]
    Truncated(&'static str),
    /// Bytes were changed.
    #[error("the checksum of section `{0}` is wrong: the image is corrupted")]
    Checksum(&'static str),
    /// A section says what cannot be.
    #[error("section `{section}`: {why}")]
    Invalid {
        /// Which section.
        section: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The delta was made from another image.
    #[error(
        "the delta goes from another image: that of call {expected}, and this is that of call \
         {found} or was changed by the host since"
    )]
    Base {
        /// The calls of the image that it was made from.
        expected: u64,
        /// The calls of the image at hand.
        found: u64,
    },
    /// The delta is of another module.
    #[error("the delta is of another module than the image")]
    Module,
}
