//! Numbers out of configuration files, each with the range in which it makes sense.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Result, WanError};

/// One JSON object of one file. Every field is taken by name; what is left at the end is unknown and refused.
#[derive(Debug)]
pub(crate) struct Fields {
    path: PathBuf,
    section: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Parses `bytes`, the content of `path`.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| WanError::checkpoint(path, format!("not valid JSON: {error}")))?;
        Self::from_value(path, String::new(), value)
    }

    fn from_value(path: &Path, section: String, value: Value) -> Result<Self> {
        let Value::Object(map) = value else {
            let place = if section.is_empty() { "the file".to_owned() } else { section };
            return Err(WanError::checkpoint(path, format!("{place} should be a JSON object")));
        };
        Ok(Self { path: path.to_owned(), section, map })
    }

    fn label(&self, name: &str) -> String {
        if self.section.is_empty() { name.to_owned() } else { format!("{}.{name}", self.section) }
    }

    /// A fault of field `name`.
    pub(crate) fn fault(&self, name: &str, got: impl Display, expected: impl Display) -> WanError {
        let label = self.label(name);
        WanError::checkpoint(&self.path, format!("{label} is {got}, expected {expected}"))
    }

    fn missing(&self, name: &str, expected: impl Display) -> WanError {
        let label = self.label(name);
        WanError::checkpoint(&self.path, format!("{label} is missing, expected {expected}"))
    }

    /// Takes a field; JSON null counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Drops fields that carry no meaning here.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// A whole number within `range`.
    pub(crate) fn count(&mut self, name: &str, range: RangeInclusive<usize>) -> Result<usize> {
        match self.optional_count(name, range.clone())? {
            Some(number) => Ok(number),
            None => Err(self.missing(name, Bounds(&range))),
        }
    }

    /// A whole number within `range`, if the field is there.
    pub(crate) fn optional_count(
        &mut self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.fault(name, &value, Bounds(&range))),
        }
    }

    /// A number within `range`, if the field is there.
    pub(crate) fn optional_number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.fault(name, &value, Bounds(&range))),
        }
    }

    /// True or false, if the field is there.
    pub(crate) fn optional_flag(&mut self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.fault(name, &value, "true or false"))
    }

    /// Text, if the field is there.
    pub(crate) fn optional_text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.fault(name, value, "text")),
        }
    }

    /// A nested object, if the field is there.
    pub(crate) fn optional_section(&mut self, name: &str) -> Result<Option<Self>> {
        let label = self.label(name);
        self.take(name).map(|value| Self::from_value(&self.path, label, value)).transpose()
    }

    /// Refuses a field whose value is not exactly `expected`; absence is fine.
    pub(crate) fn only(&mut self, name: &str, expected: &Value, reason: &str) -> Result<()> {
        match self.take(name) {
            Some(value) if value != *expected => {
                Err(self.fault(name, value, format!("{expected}: {reason}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what nothing took. Names that start with an underscore are the writer's own notes; null means unset, and
    /// so does an array of nulls, which is how diffusers writes a part that a pipeline does not have.
    pub(crate) fn finish(self) -> Result<()> {
        let is_unset = |value: &Value| match value {
            Value::Array(parts) => !parts.is_empty() && parts.iter().all(Value::is_null),
            value => value.is_null(),
        };
        let unknown: Vec<_> = self
            .map
            .iter()
            .filter(|(name, value)| !name.starts_with('_') && !is_unset(value))
            .map(|(name, _)| self.label(name))
            .collect();
        match unknown.first() {
            None => Ok(()),
            Some(first) => {
                let message = format!("{} unknown field(s), first {first}", unknown.len());
                Err(WanError::checkpoint(&self.path, message))
            }
        }
    }
}

struct Bounds<'a, T>(&'a RangeInclusive<T>);

impl<T: Display> Display for Bounds<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a number from {} to {}", self.0.start(), self.0.end())
    }
}
