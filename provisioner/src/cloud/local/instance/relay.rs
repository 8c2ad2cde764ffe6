//! Connections from within an instance's own network to an address of the machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at once to one address; a host needs one or two. More wait.
const CONNECTIONS: usize = 32;
/// Each direction of a connection. Two buffers for each connection stay below a megabyte in all.
const BUFFER: usize = 8 << 10;
/// Longest wait for the other side.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts connections of `listener` and copies them to and from `address`, until dropped.
pub(super) async fn serve(listener: TcpListener, address: SocketAddr) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((inside, _)) => {
                tokio::spawn(async move {
                    relay(inside, address).await;
                    drop(place);
                });
            }
            // No descriptor is left: wait until some are.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn relay(mut inside: TcpStream, address: SocketAddr) {
    let Ok(Ok(mut outside)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await else {
        // The connection inside ends with this, which is what a machine that is not there looks like.
        return;
    };
    // Whoever of the two breaks it off, the other one sees its end.
    copy_bidirectional_with_sizes(&mut inside, &mut outside, BUFFER, BUFFER)
        .await
        .ok();
}
