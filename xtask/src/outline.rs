//! A rough outline of a Rust file: how long it is without its tests, and how long its functions are.
//!
//! It counts braces line by line and knows strings, characters and comments only as far as braces in them go; good enough to
//! hold a limit, not to parse Rust.

/// A function and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// First line, counted from 1.
    pub(crate) line: usize,
    /// Lines from signature to closing brace.
    pub(crate) n_lines: usize,
}

/// The source without what follows an inline test module.
pub(crate) fn without_tests(source: &str) -> &str {
    source.find("#[cfg(test)]\nmod tests {").map_or(source, |end| &source[..end])
}

/// Every function with a body.
pub(crate) fn functions(source: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut open: Vec<(Function, i64)> = Vec::new();
    let mut depth = 0;
    for (index, line) in source.lines().enumerate() {
        let bare = without_literals(line);
        if let Some(name) = function_name(&bare) {
            open.push((Function { name, line: index + 1, n_lines: 0 }, depth));
        }
        let before = depth;
        depth += net_braces(&bare);
        let opened_here = bare.contains('{');
        while let Some((_, outer)) = open.last() {
            let closed = depth <= *outer && (opened_here || before > *outer) && bare.contains('}');
            let declared_only = depth <= *outer && before <= *outer && bare.trim_end().ends_with(';');
            if !closed && !declared_only {
                break;
            }
            if let Some((mut function, _)) = open.pop().filter(|_| closed) {
                function.n_lines = index + 2 - function.line;
                found.push(function);
            }
        }
    }
    found
}

fn net_braces(bare: &str) -> i64 {
    bare.chars().map(|c| i64::from(c == '{') - i64::from(c == '}')).sum()
}

fn function_name(bare: &str) -> Option<String> {
    let mut words = bare.split_whitespace().skip_while(|word| {
        word.starts_with("pub") || matches!(*word, "const" | "async" | "unsafe" | "extern" | "in" | "crate)")
    });
    if words.next()? != "fn" {
        return None;
    }
    let name: String = words.next()?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The line with comments, strings and character literals blanked out.
fn without_literals(line: &str) -> String {
    let mut bare = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => drop(chars.next()),
            '"' => in_string = !in_string,
            _ if in_string => {}
            '/' if chars.peek() == Some(&'/') => break,
            '\'' => skip_char_literal(&mut chars),
            _ => bare.push(c),
        }
    }
    bare
}

fn skip_char_literal(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let mut ahead = chars.clone();
    let first = ahead.next();
    let is_literal = first == Some('\\') || ahead.next() == Some('\'');
    if is_literal {
        let mut escaped = false;
        for c in chars.by_ref() {
            match c {
                '\'' if !escaped => return,
                '\\' if !escaped => escaped = true,
                _ => escaped = false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_from_the_signature_to_the_closing_brace() {
        let source = "fn a() {\n    let s = \"}\";\n    let c = '}';\n}\n\nimpl X {\n    pub(crate) fn b(\n        x: u8,\n    ) -> u8 {\n        x // }\n    }\n    fn c();\n}\nfn d() {}\n";
        let lengths: Vec<_> = functions(source).into_iter().map(|f| (f.name, f.line, f.n_lines)).collect();
        assert_eq!(lengths, [("a".into(), 1, 4), ("b".into(), 7, 5), ("d".into(), 14, 1)]);
    }

    #[test]
    fn inline_tests_do_not_count() {
        assert_eq!(without_tests("fn a() {}\n#[cfg(test)]\nmod tests {\n}\n"), "fn a() {}\n");
    }
}
