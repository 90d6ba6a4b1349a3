//! HTTP/1.1 over one connection per request, blocking, for tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body without the lengths that stand between its chunks.
    pub(crate) fn unchunked(&self) -> Vec<u8> {
        assert_eq!(self.header("transfer-encoding"), Some("chunked"));
        let (mut whole, mut rest) = (Vec::new(), &self.body[..]);
        loop {
            let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            if length == 0 {
                return whole;
            }
            whole.extend_from_slice(&rest[end + 2..end + 2 + length]);
            rest = &rest[end + 2 + length + 2..];
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    key: Option<String>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, key: None }
    }

    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> BufReader<TcpStream> {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        if let Some(key) = &self.key {
            head += &format!("authorization: Bearer {key}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).unwrap();
        BufReader::new(stream)
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.open(method, path, headers, body);
        let (status, headers) = read_head(&mut stream);
        let mut answer = Answer { status, headers, body: Vec::new() };
        stream.read_to_end(&mut answer.body).unwrap();
        answer
    }

    /// The status of a request, and its body as it comes.
    pub(crate) fn stream(&self, path: &str) -> (u16, BufReader<TcpStream>) {
        let mut stream = self.open("GET", path, &[], b"");
        (read_head(&mut stream).0, stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Creates a video; gives its name.
    pub(crate) fn create(&self, body: &Value) -> String {
        let answer = self.post("/v1/videos", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Events of a path, as (name, data).
    pub(crate) fn events(&self, path: &str) -> impl Iterator<Item = (String, Value)> + use<> {
        let mut stream = self.open("GET", path, &[], b"");
        assert_eq!(read_head(&mut stream).0, 200);
        let mut name = String::new();
        // Chunk lengths stand on lines of their own, so lines with a field are enough.
        let mut lines = stream.lines();
        std::iter::from_fn(move || {
            loop {
                let line = lines.next()?.ok()?;
                if let Some(event) = line.strip_prefix("event: ") {
                    event.clone_into(&mut name);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    return Some((name.clone(), serde_json::from_str(data).unwrap()));
                }
            }
        })
    }

    /// Waits until a video has ended, by its events; gives its last object.
    pub(crate) fn wait(&self, id: &str) -> Value {
        let mut last = Value::Null;
        for (name, data) in self.events(&format!("/v1/videos/{id}/events")) {
            assert_eq!(name, "video", "{data}");
            last = data;
        }
        last
    }

    /// The bytes of a finished video.
    pub(crate) fn video(&self, id: &str) -> Vec<u8> {
        let answer = self.get(&format!("/v1/videos/{id}/content"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.body
    }
}

fn read_head(stream: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { return (status, headers) };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
}
