//! XML in the order it is written: EC2's answers need elements and text, nothing else.

use std::fmt::{Display, Write as _};

/// Elements one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xml(String);

impl Xml {
    /// `<name>value</name>`, escaped.
    pub fn text(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.open(name);
        for character in value.to_string().chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                other => self.0.push(other),
            }
        }
        self.close(name)
    }

    /// The same if there is a value.
    pub fn optional(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    /// `<name>…</name>` with what `content` writes.
    pub fn within(&mut self, name: &str, content: impl FnOnce(&mut Self)) -> &mut Self {
        self.open(name);
        content(self);
        self.close(name)
    }

    /// A list as EC2 writes it: `<name><item>…</item><item>…</item></name>`.
    pub fn set<I: IntoIterator>(
        &mut self,
        name: &str,
        items: I,
        mut content: impl FnMut(&mut Self, I::Item),
    ) -> &mut Self {
        self.within(name, |xml| {
            for item in items {
                xml.within("item", |xml| content(xml, item));
            }
        })
    }

    /// A list of texts: `<name><item>a</item></name>`.
    pub fn texts<I: IntoIterator<Item: Display>>(&mut self, name: &str, items: I) -> &mut Self {
        self.within(name, |xml| {
            for item in items {
                xml.text("item", item);
            }
        })
    }

    /// What was written, as a document.
    #[must_use]
    pub fn document(&self) -> String {
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", self.0)
    }

    /// The answer to an action, with what was written as its content.
    #[must_use]
    pub fn response(&self, action: &str, request_id: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{request_id}</requestId>{}</{action}Response>",
            self.0
        )
    }

    fn open(&mut self, name: &str) {
        write!(self.0, "<{name}>").expect("a string takes everything");
    }

    fn close(&mut self, name: &str) -> &mut Self {
        write!(self.0, "</{name}>").expect("a string takes everything");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_lists_are_items() {
        let mut xml = Xml::default();
        xml.text("a", "<&>")
            .optional("none", None::<&str>)
            .set("tagSet", ["x", "y"], |xml, value| {
                xml.text("key", value);
            })
            .texts("ids", ["i", "j"]);
        assert_eq!(
            xml.response("Do", "r"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <DoResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId>\
             <a>&lt;&amp;&gt;</a><tagSet><item><key>x</key></item><item><key>y</key></item></tagSet>\
             <ids><item>i</item><item>j</item></ids></DoResponse>"
        );
    }
}
