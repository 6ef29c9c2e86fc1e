// What a Rust compiler makes of generic, inlined, nested and panicking code. Run
// with a number.
use std::hint::black_box;
use std::panic;

mod shop {
    use std::hint::black_box;

    pub struct Cart {
        pub n: u64,
    }

    pub trait Sells {
        fn sell(&mut self, by: u64) -> u64;
    }

    impl Sells for Cart {
        #[inline(never)]
        fn sell(&mut self, by: u64) -> u64 {
            self.n = black_box(self.n + by);
            self.n
        }
    }

    impl<'a> Sells for &'a mut Cart {
        #[inline(never)]
        fn sell(&mut self, by: u64) -> u64 {
            black_box(by);
            (**self).sell(by)
        }
    }

    #[inline(never)]
    pub fn largest<T: PartialOrd + Copy>(a: T, b: T) -> T {
        black_box(if a > b { a } else { b })
    }

    #[inline(always)]
    pub fn small(n: u64) -> u64 {
        black_box(black_box(n) ^ 5)
    }

    #[inline(never)]
    pub fn never(n: u64) -> u64 {
        black_box(n)
    }
}
use shop::Sells;

#[inline(never)]
fn each<F: FnMut(u64)>(n: u64, mut f: F) {
    for i in 0..n {
        f(black_box(i))
    }
}

#[inline(never)]
fn nested(n: u64) {
    // A closure, a closure within it, and a function within that.
    let outer = |m: u64| {
        let inner = |k: u64| {
            #[inline(never)]
            fn deepest(k: u64) -> u64 {
                black_box(k + 1)
            }
            black_box(deepest(k));
        };
        let inner: &dyn Fn(u64) = &inner;
        black_box(inner)(m);
    };
    let outer: &dyn Fn(u64) = &outer;
    for i in 0..n {
        black_box(outer)(i);
    }
}

#[inline(never)]
fn checked(n: u64) -> u64 {
    if n > 3 {
        panic!("too many");
    }
    black_box(n)
}

fn main() {
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut c = shop::Cart { n: 0 };
    for i in 0..n {
        c.sell(i);
    }
    Sells::sell(&mut &mut c, 1);
    each(n, |i| {
        black_box(i);
    });
    nested(n);
    black_box(shop::largest(1u32, n as u32));
    black_box(shop::largest(1.0, n as f64));
    for i in 0..n {
        black_box(shop::small(i));
    }
    if n == 99 {
        shop::never(n);
    }
    panic::set_hook(Box::new(|_| {}));
    let r = panic::catch_unwind(|| checked(n));
    std::process::exit((r.is_err() != (n > 3)) as i32);
}
