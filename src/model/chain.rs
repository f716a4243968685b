//! How an error is written where nobody asks for its causes any more.

use std::error::Error;
use std::fmt;

/// An error with all that caused it, on one line: `cannot write: No space left on device`.
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            source = cause.source();
            let text = cause.to_string();
            // What passes its cause on as its own text is not said twice.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Nested {
        #[error("cannot write `x`")]
        Outer(#[source] Box<Self>),
        #[error(transparent)]
        Same(Box<Self>),
        #[error("the disk: {0}")]
        Inside(#[source] Box<Self>),
        #[error("no space left")]
        Inner,
    }

    #[test]
    fn causes_are_told_once_each() {
        let error = Nested::Outer(Box::new(Nested::Same(Box::new(Nested::Inner))));
        assert_eq!(Chain(&error).to_string(), "cannot write `x`: no space left");
        let error = Nested::Outer(Box::new(Nested::Inside(Box::new(Nested::Inner))));
        assert_eq!(Chain(&error).to_string(), "cannot write `x`: the disk: no space left");
    }
}
