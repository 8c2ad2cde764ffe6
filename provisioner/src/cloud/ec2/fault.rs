//! What an error of EC2 means: whether anything may have happened, whose fault it is, what to do.
//!
//! Codes are those of "Error codes for the Amazon EC2 API" (EC2 Developer Guide), and those other
//! programs have met. Only the code decides, never the sentence beside it, with one exception where
//! EC2 uses one code for two things ([`reason`]).

use std::time::Duration;

use crate::cloud::{CloudError, LaunchError, ShortReason};

/// A call that failed, by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing happened: too many calls, or something that passes by itself within seconds.
    Throttled {
        /// Wait at least this long.
        retry_after: Duration,
        /// What was said.
        message: String,
    },
    /// Nothing happened, and nothing will until something changes.
    Refused {
        /// Why.
        reason: ShortReason,
        /// EC2's code; empty if it was never asked.
        code: String,
        /// Code and sentence.
        message: String,
    },
    /// No answer, or none to build on: it may have happened.
    Lost {
        /// What happened.
        message: String,
    },
    /// The token was used before, with other parameters or for instances that are gone.
    Mismatch {
        /// What was said.
        message: String,
    },
}

/// How long to wait when EC2 says "later" and names no time.
pub(super) const LATER: Duration = Duration::from_secs(5);

/// Codes that mean a call too many. EC2 itself says `RequestLimitExceeded`; the others come from
/// gateways in front of it and from compatible clouds.
const THROTTLED: [&str; 7] = [
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "TooManyRequestsException",
    "SlowDown",
];

/// Why a launch, or one override of a fleet, was refused; `None` for a code that is not known.
pub(super) fn reason(code: &str, message: &str) -> Option<ShortReason> {
    Some(match code {
        "InsufficientInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientCapacityOnHost"
        | "InsufficientHostCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientVolumeCapacity"
        | "ReservationCapacityExceeded"
        | "UnfulfillableCapacity" => ShortReason::NoCapacity,

        "MaxSpotInstanceCountExceeded"
        | "MaxSpotFleetRequestCountExceeded"
        | "MaxFleetCountExceeded"
        | "VcpuLimitExceeded"
        | "InstanceLimitExceeded"
        | "FleetLimitExceeded"
        | "ResourceLimitExceeded"
        | "RequestResourceCountExceeded"
        | "ResourceCountExceeded"
        | "AttachmentLimitExceeded"
        | "NetworkInterfaceLimitExceeded"
        | "LaunchTemplateLimitExceeded"
        | "LaunchTemplateVersionLimitExceeded"
        | "MaxIOPSLimitExceeded"
        | "TagLimitExceeded"
        | "VolumeLimitExceeded" => ShortReason::Quota,

        "InsufficientFreeAddressesInSubnet"
        | "InsufficientAddressCapacity"
        | "AddressLimitExceeded"
        | "PrivateIpAddressLimitExceeded" => ShortReason::NoAddress,

        "Unsupported"
        | "UnsupportedOperation"
        | "UnsupportedInstanceTypeOnHost"
        | "UnsupportedHostConfiguration"
        | "UnsupportedHibernationConfiguration"
        | "InvalidInstanceType"
        | "InvalidInstanceType.NotFound"
        | "InvalidAvailabilityZone" => ShortReason::Unsupported,

        "SpotMaxPriceTooLow" | "InvalidSpotFleetRequestConfig.MaxPrice" | "BidTooLow" => {
            ShortReason::Price
        }

        "InvalidAMIID.NotFound"
        | "InvalidAMIID.Malformed"
        | "InvalidAMIID.Unavailable"
        | "InvalidAMIID.UnavailableDueToRecycleBin"
        | "InvalidAMIAttributeItemValue"
        | "InvalidImageID.NotFound"
        | "ImageNotAllowed"
        | "InvalidSnapshot.NotFound" => ShortReason::Image,

        // EC2 uses this code for bad keys and for an image or snapshot that is not shared with us.
        "AuthFailure" if message.contains("ami-") || message.contains("image id") => {
            ShortReason::Image
        }

        "AuthFailure"
        | "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
        | "Blocked"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "OptInRequired"
        | "PendingVerification"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnauthorizedOperation"
        | "UnauthorizedOperation.SpotInstances"
        | "AccessDenied"
        | "AccessDeniedException"
        | "UnrecognizedClientException" => ShortReason::NotAllowed,

        "RequestLimitExceeded" => ShortReason::Throttled,

        "InternalError" | "InternalFailure" | "ServerInternal" | "ServiceUnavailable"
        | "Unavailable" => ShortReason::CloudFault,

        _ => return settings(code),
    })
}

/// The families of codes about what we asked with.
fn settings(code: &str) -> Option<ShortReason> {
    let family = code.split('.').next().unwrap_or_default();
    let ours = matches!(
        family,
        "InvalidSubnetID"
            | "InvalidSubnet"
            | "InvalidGroup"
            | "InvalidGroupId"
            | "InvalidSecurityGroupID"
            | "InvalidSecurityGroup"
            | "InvalidSecurity"
            | "InvalidKeyPair"
            | "InvalidIamInstanceProfile"
            | "InvalidLaunchTemplateId"
            | "InvalidLaunchTemplateName"
            | "InvalidBlockDeviceMapping"
            | "InvalidDevice"
            | "InvalidNetworkInterface"
            | "InvalidUserData"
            | "InvalidVpcID"
            | "InvalidParameter"
            | "InvalidParameterCombination"
            | "InvalidParameterDependency"
            | "InvalidParameterValue"
            | "InvalidRequest"
            | "InvalidFleetConfig"
            | "InvalidFleetConfiguration"
            | "InvalidSpotFleetRequestConfig"
            | "InvalidTagKey"
            | "MissingParameter"
            | "MissingInput"
            | "MalformedQueryString"
            | "NoSuchEntity"
            | "VPCIdNotSpecified"
            | "VPCResourceNotSpecified"
            | "UnknownParameter"
            | "VolumeTypeNotAvailableInZone"
            | "Validation"
            | "ValidationError"
    );
    ours.then_some(ShortReason::Settings)
}

/// What an answer with an error means. `status` is that of HTTP, 0 if there was none.
pub(super) fn read(status: u16, code: Option<&str>, message: &str) -> Fault {
    let Some(code) = code.filter(|code| !code.is_empty()) else {
        return Fault::Lost {
            message: format!("an answer without a code (HTTP {status})"),
        };
    };
    let message = sentence(code, message);
    if THROTTLED.contains(&code) {
        let retry_after = LATER;
        return Fault::Throttled {
            retry_after,
            message,
        };
    }
    match (code, reason(code, &message)) {
        ("IdempotentParameterMismatch" | "IdempotentInstanceTerminated", _) => {
            Fault::Mismatch { message }
        }
        // Two calls met at the same thing, or the pages of an answer have changed meanwhile.
        (
            "ConcurrentTagAccess"
            | "DependencyViolation"
            | "IncorrectState"
            | "InvalidNextToken"
            | "InvalidPaginationToken",
            _,
        ) => Fault::Throttled {
            retry_after: LATER,
            message,
        },
        (_, Some(ShortReason::CloudFault)) => Fault::Lost { message },
        (_, Some(reason)) => Fault::Refused {
            reason,
            code: code.to_owned(),
            message,
        },
        // "Client errors … are accompanied by a 400-series HTTP response code": nothing was done.
        (_, None) if (400..500).contains(&status) => Fault::Refused {
            reason: ShortReason::Other,
            code: code.to_owned(),
            message,
        },
        (_, None) => Fault::Lost { message },
    }
}

/// Longest sentence of EC2 that is shown. It may name a thousand ids.
const LONGEST: usize = 400;

/// What is shown of a sentence.
pub(super) fn shown(sentence: &str) -> String {
    match sentence.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &sentence[..end]),
        None => sentence.to_owned(),
    }
}

/// Code and sentence as one, on one line. What follows "Encoded authorization failure message" is
/// hundreds of characters that nobody can read.
pub(super) fn sentence(code: &str, message: &str) -> String {
    let readable = message
        .split("Encoded authorization failure message")
        .next()
        .unwrap_or_default();
    let line: String = readable.trim().chars().flat_map(one_line).collect();
    if line.is_empty() {
        code.to_owned()
    } else {
        format!("{code}: {line}")
    }
}

fn one_line(letter: char) -> impl Iterator<Item = char> {
    let escaped = letter.is_control().then(|| letter.escape_debug());
    let plain = escaped.is_none().then_some(letter);
    escaped.into_iter().flatten().chain(plain)
}

impl Fault {
    /// A refusal of our own: EC2 was not asked.
    pub(super) fn refused(reason: ShortReason, message: impl Into<String>) -> Self {
        Self::Refused {
            reason,
            code: String::new(),
            message: message.into(),
        }
    }

    /// EC2's code of a refusal; empty for any other fault.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Throttled { .. } | Self::Lost { .. } | Self::Mismatch { .. } => "",
        }
    }

    /// EC2 says that there is no such thing, of the kind whose codes begin with `family`.
    pub(super) fn is_missing(&self, family: &str) -> bool {
        let code = self.code();
        code.starts_with(family) && (code.contains("NotFound") || code.contains("Malformed"))
    }

    /// Whether the same call may succeed in a moment.
    pub(super) const fn may_pass(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Lost { .. } => true,
            Self::Refused { .. } | Self::Mismatch { .. } => false,
        }
    }

    /// The whole sentence, however long.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Throttled { message, .. }
            | Self::Refused { message, .. }
            | Self::Lost { message }
            | Self::Mismatch { message } => message,
        }
    }

    /// The same, with what to correct, or where, added to its sentence.
    pub(super) fn with(mut self, advice: &str) -> Self {
        let message = match &mut self {
            Self::Throttled { message, .. }
            | Self::Refused { message, .. }
            | Self::Lost { message }
            | Self::Mismatch { message } => message,
        };
        *message = format!("{}; {advice}", shown(message));
        self
    }
}

impl From<Fault> for LaunchError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Throttled {
                retry_after,
                message,
            } => Self::Throttled {
                retry_after,
                message,
            },
            Fault::Refused {
                reason, message, ..
            } => Self::Refused { reason, message },
            Fault::Lost { message } => Self::Unknown { message },
            Fault::Mismatch { message } => Self::Mismatch { message },
        }
    }
}

impl From<Fault> for CloudError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused {
                reason, message, ..
            } => Self::Refused { reason, message },
            Fault::Throttled { message, .. }
            | Fault::Lost { message }
            | Fault::Mismatch { message } => Self::Unavailable { message },
        }
    }
}

/// What a person does about a refusal.
pub(super) const fn advice(reason: ShortReason) -> Option<&'static str> {
    match reason {
        ShortReason::Quota => Some("ask AWS for a larger quota, or lower `max_instances`"),
        ShortReason::NoAddress => Some("use a larger subnet"),
        ShortReason::Image => {
            Some("correct the image's `ids`, or share the image with this account")
        }
        ShortReason::Settings => {
            Some("correct the region's subnets and security groups, or the pool's EC2 keys")
        }
        ShortReason::NotAllowed => Some(
            "correct the credentials, the clock of this machine, or the rights (deploy/iam-policy.json)",
        ),
        ShortReason::Unsupported => Some("take the type out of the pool, or add other zones"),
        ShortReason::NoCapacity
        | ShortReason::Interrupted
        | ShortReason::Price
        | ShortReason::Throttled
        | ShortReason::CloudFault
        | ShortReason::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a code means when it answers a launch as a whole.
    #[derive(Debug, PartialEq)]
    enum Meaning {
        Throttled,
        Refused(ShortReason),
        Unknown,
        Mismatch,
    }

    fn meaning(status: u16, code: &str) -> Meaning {
        match LaunchError::from(read(status, Some(code), "words")) {
            LaunchError::Throttled { .. } => Meaning::Throttled,
            LaunchError::Refused { reason, .. } => Meaning::Refused(reason),
            LaunchError::Unknown { .. } => Meaning::Unknown,
            LaunchError::Mismatch { .. } => Meaning::Mismatch,
        }
    }

    #[test]
    fn every_known_code_means_what_is_written_here() {
        use Meaning::{Mismatch, Refused, Throttled, Unknown};
        use ShortReason::{
            Image, NoAddress, NoCapacity, NotAllowed, Price, Quota, Settings, Unsupported,
        };
        let table = [
            (500, "InsufficientInstanceCapacity", Refused(NoCapacity)),
            (400, "UnfulfillableCapacity", Refused(NoCapacity)),
            (400, "ReservationCapacityExceeded", Refused(NoCapacity)),
            (500, "InsufficientHostCapacity", Refused(NoCapacity)),
            (
                500,
                "InsufficientReservedInstanceCapacity",
                Refused(NoCapacity),
            ),
            (500, "InsufficientCapacity", Refused(NoCapacity)),
            (400, "MaxSpotInstanceCountExceeded", Refused(Quota)),
            (400, "VcpuLimitExceeded", Refused(Quota)),
            (400, "InstanceLimitExceeded", Refused(Quota)),
            (400, "MaxFleetCountExceeded", Refused(Quota)),
            (400, "VolumeLimitExceeded", Refused(Quota)),
            (400, "InsufficientFreeAddressesInSubnet", Refused(NoAddress)),
            (500, "InsufficientAddressCapacity", Refused(NoAddress)),
            (400, "Unsupported", Refused(Unsupported)),
            (400, "UnsupportedOperation", Refused(Unsupported)),
            (400, "InvalidInstanceType", Refused(Unsupported)),
            (400, "SpotMaxPriceTooLow", Refused(Price)),
            (400, "InvalidAMIID.NotFound", Refused(Image)),
            (400, "InvalidAMIID.Unavailable", Refused(Image)),
            (400, "InvalidAMIID.Malformed", Refused(Image)),
            (400, "InvalidSubnetID.NotFound", Refused(Settings)),
            (400, "InvalidGroup.NotFound", Refused(Settings)),
            (400, "InvalidSecurityGroupID.NotFound", Refused(Settings)),
            (400, "InvalidKeyPair.NotFound", Refused(Settings)),
            (
                400,
                "InvalidLaunchTemplateName.NotFoundException",
                Refused(Settings),
            ),
            (
                400,
                "InvalidLaunchTemplateId.VersionNotFound",
                Refused(Settings),
            ),
            (400, "InvalidBlockDeviceMapping", Refused(Settings)),
            (400, "InvalidParameterValue", Refused(Settings)),
            (400, "InvalidParameterCombination", Refused(Settings)),
            (400, "MissingParameter", Refused(Settings)),
            (401, "AuthFailure", Refused(NotAllowed)),
            (403, "UnauthorizedOperation", Refused(NotAllowed)),
            (400, "RequestExpired", Refused(NotAllowed)),
            (401, "InvalidClientTokenId", Refused(NotAllowed)),
            (403, "SignatureDoesNotMatch", Refused(NotAllowed)),
            (400, "OptInRequired", Refused(NotAllowed)),
            (400, "PendingVerification", Refused(NotAllowed)),
            (400, "Blocked", Refused(NotAllowed)),
            (
                400,
                "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
                Refused(NotAllowed),
            ),
            (503, "RequestLimitExceeded", Throttled),
            (400, "RequestLimitExceeded", Throttled),
            (400, "Throttling", Throttled),
            (400, "ConcurrentTagAccess", Throttled),
            (500, "InternalError", Unknown),
            (500, "InternalFailure", Unknown),
            (503, "Unavailable", Unknown),
            (503, "ServiceUnavailable", Unknown),
            (400, "IdempotentParameterMismatch", Mismatch),
            (400, "IdempotentInstanceTerminated", Mismatch),
        ];
        for (status, code, expected) in table {
            assert_eq!(meaning(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn a_code_nobody_knows_is_believed_to_have_done_nothing_only_if_it_blames_us() {
        for status in [400, 403, 499] {
            let expected = Meaning::Refused(ShortReason::Other);
            assert_eq!(meaning(status, "BrandNew"), expected, "{status}");
        }
        for status in [0, 200, 301, 500, 503] {
            assert_eq!(meaning(status, "BrandNew"), Meaning::Unknown, "{status}");
        }
        assert!(matches!(read(502, None, "<html>"), Fault::Lost { .. }));
        assert!(matches!(read(400, Some(""), ""), Fault::Lost { .. }));
    }

    #[test]
    fn a_refused_image_is_not_taken_for_wrong_credentials() {
        let said = "Not authorized for images: [ami-0123456789abcdef0]";
        assert_eq!(reason("AuthFailure", said), Some(ShortReason::Image));
        let said = "AWS was not able to validate the provided access credentials";
        assert_eq!(reason("AuthFailure", said), Some(ShortReason::NotAllowed));
    }

    #[test]
    fn a_sentence_is_one_short_line_without_what_nobody_can_read() {
        let said = "You are not authorized.\nEncoded authorization failure message: 4gQ…";
        assert_eq!(
            sentence("UnauthorizedOperation", said),
            "UnauthorizedOperation: You are not authorized."
        );
        assert_eq!(sentence("A", "b\nc\u{1b}[31m"), r"A: b\nc\u{1b}[31m");
        assert_eq!(sentence("A", ""), "A");
        let long = sentence("A", &"ü".repeat(10_000));
        assert_eq!(shown(&long).chars().count(), LONGEST + 1);
        assert_eq!(shown("short"), "short");
    }

    #[test]
    fn a_missing_thing_is_told_from_a_wrong_one() {
        let missing = read(400, Some("InvalidInstanceID.NotFound"), "");
        assert!(missing.is_missing("InvalidInstanceID"));
        assert!(!missing.is_missing("InvalidLaunchTemplate"));
        let wrong = read(400, Some("InvalidInstanceID.NotLinkable"), "");
        assert!(!wrong.is_missing("InvalidInstanceID"));
    }
}
