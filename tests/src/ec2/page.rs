//! Pages: `MaxResults` and `NextToken` ("Pagination", EC2 Developer Guide).

use std::ops::RangeInclusive;

use super::error::ApiError;
use super::params::Params;

/// Which part of a list was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    from: usize,
    size: usize,
}

impl Page {
    /// The page of a request; without `MaxResults` all is one page.
    pub(super) fn of(params: &Params, sizes: RangeInclusive<usize>) -> Result<Self, ApiError> {
        let size: Option<usize> = params.number("MaxResults")?;
        if let Some(size) = size
            && !sizes.contains(&size)
        {
            let expected = format!("Expected from {} to {}.", sizes.start(), sizes.end());
            return Err(ApiError::invalid_value(
                &size.to_string(),
                "MaxResults",
                &expected,
            ));
        }
        let from = params.get("NextToken").map_or(Ok(0), |token| {
            let number = token.strip_prefix("fake-page-").map(str::parse);
            match number {
                Some(Ok(number)) => Ok(number),
                _ => Err(ApiError::client(
                    "InvalidParameterValue",
                    "Unable to parse pagination token",
                )),
            }
        })?;
        Ok(Self {
            from,
            size: size.unwrap_or(usize::MAX),
        })
    }

    /// The same with a page size for requests that name none.
    pub(super) fn at_most(self, size: usize) -> Self {
        Self {
            size: self.size.min(size),
            ..self
        }
    }

    /// The first number of its items, if items are known by numbers.
    pub(super) const fn first_number(self) -> u64 {
        self.from as u64
    }

    /// Its items and the token of the next page. Items are known by their place in the list.
    pub(super) fn cut<T>(self, items: impl Iterator<Item = T>) -> (Vec<T>, Option<String>) {
        let mut rest = items.skip(self.from);
        let shown: Vec<T> = rest.by_ref().take(self.size).collect();
        let next = rest.next().map(|_| token(self.from + shown.len()));
        (shown, next)
    }

    /// Its items and the token of the next page. Items are known by a number that only grows, so that
    /// nothing is shown twice or left out when others come and go between two pages.
    pub(super) fn cut_numbered<T>(
        self,
        items: impl Iterator<Item = (u64, T)>,
    ) -> (Vec<T>, Option<String>) {
        let mut rest = items.skip_while(|(number, _)| *number < self.first_number());
        let shown = rest
            .by_ref()
            .take(self.size)
            .map(|(_, item)| item)
            .collect();
        let next = rest.next().map(|(number, _)| token(number));
        (shown, next)
    }
}

fn token(number: impl std::fmt::Display) -> String {
    format!("fake-page-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(form: &str) -> Page {
        Page::of(&Params::parse(form), 1..=10).unwrap()
    }

    #[test]
    fn pages_follow_one_another_and_the_last_has_no_token() {
        let (first, token) = page("MaxResults=2").cut(0..4);
        assert_eq!((first, token.as_deref()), (vec![0, 1], Some("fake-page-2")));
        let (last, token) = page("MaxResults=2&NextToken=fake-page-2").cut(0..4);
        assert_eq!((last, token), (vec![2, 3], None));
    }

    #[test]
    fn numbered_items_are_neither_repeated_nor_left_out_when_others_go() {
        let all = [(3, 'a'), (5, 'b'), (8, 'c'), (9, 'd')];
        let (first, token) = page("MaxResults=2").cut_numbered(all.into_iter());
        assert_eq!(first, ['a', 'b']);
        let form = format!("NextToken={}", token.unwrap());
        let (rest, _) = page(&form).cut_numbered(all.into_iter().skip(1));
        assert_eq!(rest, ['c', 'd']);
    }

    #[test]
    fn sizes_and_tokens_are_checked() {
        for form in [
            "MaxResults=0",
            "MaxResults=11",
            "NextToken=x",
            "MaxResults=y",
        ] {
            assert!(Page::of(&Params::parse(form), 1..=10).is_err(), "{form}");
        }
    }
}
