//! `Filter.N`: values of one filter are alternatives, filters are all demanded ("List and filter using
//! the CLI and API", EC2 User Guide). `*` stands for any characters, `?` for one, `\` takes their
//! meaning away; values are case-sensitive.

use super::error::ApiError;
use super::params::Params;

/// EC2's limit: "200 filter values" per request (`FilterLimitExceeded`).
const VALUES_LIMIT: usize = 200;

/// The filters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    /// Those of a request; a name that is not `known` is refused. Names that end in `:` stand for all
    /// that begin so (`tag:`).
    pub(super) fn of(params: &Params, known: &[&str]) -> Result<Self, ApiError> {
        let mut filters = Vec::new();
        let mut values_count = 0;
        for filter in params.structures("Filter") {
            let name = filter.required("Name")?.to_owned();
            let is_known =
                |known: &str| name == known || (known.ends_with(':') && name.starts_with(known));
            if !known.iter().any(|name| is_known(name)) {
                let message = format!("The filter '{name}' is invalid");
                return Err(ApiError::client("InvalidParameterValue", message));
            }
            let values = filter.list("Value");
            values_count += values.len();
            filters.push((name, values));
        }
        if values_count > VALUES_LIMIT {
            let message = format!("The maximum number of filter values is {VALUES_LIMIT}");
            return Err(ApiError::client("FilterLimitExceeded", message));
        }
        Ok(Self(filters))
    }

    /// Whether something passes, given its values by filter name.
    pub(super) fn pass(&self, values_of: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let values = values_of(name);
            wanted.iter().any(|wanted| {
                let wanted: Vec<char> = wanted.chars().collect();
                let fits = |value: &String| matches(&wanted, &value.chars().collect::<Vec<_>>());
                values.iter().any(fits)
            })
        })
    }
}

/// Glob matching without backtracking into earlier stars: only the last star can still grow.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                retry = Some((p, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some('?') if t < text.len() => Some(1),
            Some('\\') if p + 1 < pattern.len() => (text.get(t) == pattern.get(p + 1)).then_some(2),
            Some(literal) => (text.get(t) == Some(literal)).then_some(1),
        };
        match (step, retry) {
            (Some(step), _) => {
                p += step;
                t += 1;
            }
            (None, Some((star, taken))) if taken < text.len() => {
                p = star + 1;
                t = taken + 1;
                retry = Some((star, taken + 1));
            }
            (None, _) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_question_marks_and_backslashes_mean_what_ec2_says() {
        let table = [
            ("running", "running", true),
            ("running", "Running", false),
            ("run*", "running", true),
            ("*ing", "running", true),
            ("r*n*g", "running", true),
            ("r?nning", "running", true),
            ("r?nning", "rnning", false),
            ("*", "", true),
            ("?", "", false),
            ("", "", true),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            ("a*b*c", "aXbYbZ", false),
            ("run", "running", false),
        ];
        for (pattern, text, expected) in table {
            let pattern_chars: Vec<char> = pattern.chars().collect();
            let text_chars: Vec<char> = text.chars().collect();
            assert_eq!(
                matches(&pattern_chars, &text_chars),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn every_filter_must_pass_and_one_value_of_it_is_enough() {
        let params = Params::parse(
            "Filter.1.Name=tag:pool&Filter.1.Value.1=a&Filter.1.Value.2=b&Filter.2.Name=image-id&Filter.2.Value.1=ami-1",
        );
        let filters = Filters::of(&params, &["tag:", "image-id"]).unwrap();
        let pass = |pool: &str, image: &str| {
            filters.pass(|name| match name {
                "tag:pool" => vec![pool.to_owned()],
                _ => vec![image.to_owned()],
            })
        };
        assert!(pass("b", "ami-1"));
        assert!(!pass("c", "ami-1"));
        assert!(!pass("a", "ami-2"));
    }

    #[test]
    fn an_unknown_filter_is_refused() {
        let params = Params::parse("Filter.1.Name=colour&Filter.1.Value.1=red");
        let error = Filters::of(&params, &["tag:"]).unwrap_err();
        assert_eq!(error.message, "The filter 'colour' is invalid");
    }
}
