//! The parameters of a request: EC2's query protocol writes structures and lists into flat names,
//! `Filter.1.Value.2=x` ("Query requests", EC2 Developer Guide).

use std::collections::BTreeMap;
use std::str::FromStr;

use super::error::ApiError;

/// Names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads a body of type `application/x-www-form-urlencoded`.
    ///
    /// # Panics
    ///
    /// Never: the address is a constant.
    #[must_use]
    pub fn parse(form: &str) -> Self {
        let mut url = reqwest::Url::parse("http://ec2/").expect("a constant address");
        url.set_query(Some(form));
        let pairs = url.query_pairs();
        Self(
            pairs
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    /// Every name and value, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// The same without one name.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut without = self.clone();
        without.0.remove(name);
        without
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name, or one below it, is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some() || !self.under(name).is_empty()
    }

    /// The value of a name EC2 insists on.
    ///
    /// # Errors
    ///
    /// `MissingParameter`.
    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.get(name)
            .ok_or_else(|| ApiError::missing_parameter(name))
    }

    /// A value that is a number (or another thing with a text form).
    ///
    /// # Errors
    ///
    /// `InvalidParameterValue`.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| ApiError::invalid_value(value, name, "Expected a number."))
            })
            .transpose()
    }

    /// A value that is `true` or `false`; nothing counts as false.
    ///
    /// # Errors
    ///
    /// `InvalidParameterValue`.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(value) => Err(ApiError::invalid_value(
                value,
                name,
                "Expected true or false.",
            )),
        }
    }

    /// What is below a name, by the rest of its name.
    #[must_use]
    pub fn under(&self, name: &str) -> Self {
        let prefix = format!("{name}.");
        let below = self.0.range(prefix.clone()..);
        Self(
            below
                .map_while(|(full, value)| Some((full.strip_prefix(&prefix)?, value)))
                .map(|(rest, value)| (rest.to_owned(), value.clone()))
                .collect(),
        )
    }

    /// A list of texts: `name.1`, `name.2`, in the order of their numbers.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<String> {
        let mut numbered: Vec<(u32, String)> = self
            .under(name)
            .0
            .into_iter()
            .filter_map(|(number, value)| Some((number.parse().ok()?, value)))
            .collect();
        numbered.sort_unstable();
        numbered.into_iter().map(|(_, value)| value).collect()
    }

    /// A list of structures: `name.1.…`, `name.2.…`, in the order of their numbers.
    #[must_use]
    pub fn structures(&self, name: &str) -> Vec<Self> {
        let mut structures: BTreeMap<u32, Self> = BTreeMap::new();
        for (rest, value) in self.under(name).0 {
            if let Some((number, field)) = rest.split_once('.')
                && let Ok(number) = number.parse()
            {
                structures.entry(number).or_default().set(field, value);
            }
        }
        structures.into_values().collect()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Params {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        Self(
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_structures_come_in_the_order_of_their_numbers() {
        let params = Params::parse(
            "Id.10=j&Id.2=b&Id.1=a&Tag.2.Key=y&Tag.1.Key=x&Tag.1.Value=a%20b%26%2B&Tags=z&DryRun=true",
        );
        assert_eq!(params.list("Id"), ["a", "b", "j"]);
        let tags = params.structures("Tag");
        assert_eq!(tags.len(), 2);
        assert_eq!(tags[0].get("Value"), Some("a b&+"));
        assert_eq!(tags[1].get("Key"), Some("y"));
        assert_eq!(params.flag("DryRun"), Ok(true));
        assert!(params.has("Tag") && !params.has("Ta"));
    }

    #[test]
    fn a_wrong_number_names_its_parameter() {
        let params = Params::parse("MaxResults=many");
        let error = params.number::<u32>("MaxResults").unwrap_err();
        assert_eq!(error.code, "InvalidParameterValue");
        assert!(
            error
                .message
                .contains("(many) for parameter MaxResults is invalid")
        );
    }
}
