//! What EC2 answers instead of a result: a code for programs, a sentence for people, an HTTP status.
//!
//! Codes and sentences are those of "Error codes for the Amazon EC2 API" (EC2 Developer Guide) unless
//! a constructor says otherwise.

use super::xml::Xml;

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What programs look at.
    pub code: String,
    /// What people read.
    pub message: String,
}

impl ApiError {
    /// An error of any code: what a fault point answers.
    #[must_use]
    pub fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
        }
    }

    /// A client error: EC2 answers nearly all of them with 400.
    #[must_use]
    pub(super) fn client(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    pub(super) fn invalid_action(action: &str) -> Self {
        let message = format!("The action {action} is not valid for this web service.");
        Self::client("InvalidAction", message)
    }

    /// No code of EC2: EC2 knows this parameter, the fake does not. Ignoring it would let a test pass
    /// for the wrong reason.
    pub(super) fn not_in_the_fake(what: &str) -> Self {
        let message = format!("the fake EC2 does not implement {what}");
        Self::new(501, "FakeEc2.NotImplemented", message)
    }

    pub(super) fn missing_parameter(name: &str) -> Self {
        let message = format!("The request must contain the parameter {name}");
        Self::client("MissingParameter", message)
    }

    pub(super) fn invalid_value(value: &str, name: &str, expected: &str) -> Self {
        let message = format!("Value ({value}) for parameter {name} is invalid. {expected}");
        Self::client("InvalidParameterValue", message)
    }

    pub(super) fn invalid_combination(message: &str) -> Self {
        Self::client("InvalidParameterCombination", message)
    }

    /// 503 ("Request throttling for the Amazon EC2 API", EC2 Developer Guide).
    pub(super) fn request_limit_exceeded() -> Self {
        Self::new(503, "RequestLimitExceeded", "Request limit exceeded.")
    }

    pub(super) fn auth_failure() -> Self {
        let message = "AWS was not able to validate the provided access credentials";
        Self::new(401, "AuthFailure", message)
    }

    pub(super) fn unauthorized(action: &str) -> Self {
        let message = format!(
            "You are not authorized to perform this operation. User is not authorized to perform: ec2:{action}"
        );
        Self::new(403, "UnauthorizedOperation", message)
    }

    pub(super) fn dry_run() -> Self {
        let message = "Request would have succeeded, but DryRun flag is set.";
        Self::new(412, "DryRunOperation", message)
    }

    pub(super) fn request_expired() -> Self {
        Self::client("RequestExpired", "Request has expired.")
    }

    pub(super) fn unavailable() -> Self {
        let message = "The service is unavailable. Please try again shortly.";
        Self::new(503, "Unavailable", message)
    }

    pub(super) fn idempotent_parameter_mismatch(token: &str) -> Self {
        let message = format!(
            "Arguments on this idempotent request are inconsistent with arguments used in previous request(s) with the client token {token}."
        );
        Self::client("IdempotentParameterMismatch", message)
    }

    /// The body EC2 sends.
    #[must_use]
    pub fn body(&self, request_id: &str) -> String {
        let mut xml = Xml::default();
        xml.within("Response", |xml| {
            xml.within("Errors", |xml| {
                xml.within("Error", |xml| {
                    xml.text("Code", &self.code).text("Message", &self.message);
                });
            });
            xml.text("RequestID", request_id);
        });
        xml.document()
    }
}
