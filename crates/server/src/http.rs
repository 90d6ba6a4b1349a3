//! Connections: how many, how long their headers, how slow their clients, and how they end.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use crate::config::Limits;

const HEADERS_MAX: usize = 100;
/// How long answers under way may take when the service stops.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait when the system has no connection to give, such as when all its files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping` says so and answers under way are done.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let patience = Duration::from_secs_f64(limits.client_seconds_max);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(HEADERS_MAX)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(limits.header_bytes_max);
    let mut connections = JoinSet::new();
    let mut stop = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            _ = stop.wait_for(|stops| *stops) => break,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, place)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let io = TokioIo::new(Patient { stream, patience, stalled: None });
        let connection = http.serve_connection(io, TowerToHyperService::new(router.clone()));
        let mut stop = stopping.clone();
        connections.spawn(async move {
            let _place = place;
            let mut connection = pin!(connection);
            tokio::select! {
                // A client that breaks off, or is too slow, concerns nobody else.
                _ended = connection.as_mut() => return,
                _ = stop.wait_for(|stops| *stops) => connection.as_mut().graceful_shutdown(),
            }
            drop(tokio::time::timeout(GRACE, connection).await);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

/// A stream whose client must take something within `patience` while there is something to take.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn timed<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.timed(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
