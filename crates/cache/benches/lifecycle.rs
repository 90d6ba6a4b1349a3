//! What the life of an entry costs.
fn main() {
    divan::main();
}
