//! Every operation against its definition in `f64`, over shapes that stress the tiles.

mod attention;
mod codec;
mod convolution;
mod lengths;
mod linear;
mod norm;
mod pages;
mod pointwise;
mod reference;
mod support;
