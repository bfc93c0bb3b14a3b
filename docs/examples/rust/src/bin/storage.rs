//! Keeps a counter: every call adds one, and its answer is the number.

fn main() -> std::io::Result<()> {
    let mut count = 0;
    kvmserverguest::serve(|_request| {
        count += 1;
        Ok(count.to_string().into_bytes())
    })?;
    Ok(())
}
