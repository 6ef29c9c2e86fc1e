// What compilers and linkers of C++ make of virtual functions, constructors,
// templates, lambdas, early returns and code that seldom runs. Run with the name
// of what is to be called.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace goods {
volatile int v = 1;
__attribute__((noinline)) void sink(int x) { v = v + x; }

struct Priced {
	virtual ~Priced() { sink(1); }
	virtual int price(int n) { sink(n); return n; }
};
struct Weighed {
	int pad = 0;
	virtual ~Weighed() { sink(2); }
	virtual int weight(int n) { sink(n + 1); return n; }
};
struct Item : Priced, virtual Weighed {
	int n;
	Item(int);
	~Item() override;
	int price(int) override;
	int weight(int) override;
};
struct Special : Item {
	Special(int n) : Item(n) { sink(3); }
};
Item::Item(int x) : n(x) { sink(x); sink(n); }
Item::~Item() { sink(n); sink(4); }
int Item::price(int x) { sink(x * 3); sink(n); return v; }
int Item::weight(int x) { sink(x * 5); sink(n); return v; }

template <typename T> struct Box {
	T t;
	T open(T by) { sink(int(by)); sink(int(t)); return t + by; }
};
template struct Box<int>;
template struct Box<long>;

// Its head is often inlined, and the rest called.
static int early(int x) {
	if (x < 3)
		return v;
	for (int i = 0; i < x; i++) {
		sink(i); sink(x); sink(i * x); sink(v); sink(i + x); sink(i ^ x); sink(i - x);
	}
	return v + x;
}
__attribute__((noinline)) int early_one(int x) { return early(x) + 1; }
__attribute__((noinline)) int early_two(int x) { return early(x) + 2; }

// Only ever called with 7.
static __attribute__((noinline)) int known(int x, int times) {
	for (int i = 0; i < times; i++)
		sink(x * times);
	return v;
}
__attribute__((noinline)) int via_known(int x) { return known(x, 7); }

// Throws, which seldom happens.
__attribute__((noinline)) int checked(int x) {
	if (x == 77) {
		sink(7700);
		throw std::runtime_error("77");
	}
	sink(x);
	return v;
}

// The same code.
__attribute__((noinline)) int buy(int x) { sink(x); return x * 31 + v; }
__attribute__((noinline)) int steal(int x) { sink(x); return x * 31 + v; }

template <typename F> __attribute__((noinline)) int each(int n, F f) {
	for (int i = 0; i < n; i++)
		f(i);
	return v;
}
}

using namespace goods;

// Nobody can see which of these it is.
static void *volatile hidden;
template <typename T> static T *hide(T *t) { hidden = t; return static_cast<T *>(hidden); }

int main(int argc, char **argv) {
	if (argc < 2)
		return 0;
	auto is = [&](const char *s) { return !strcmp(argv[1], s); };
	if (is("price")) {
		Special s(argc);
		return hide<Priced>(&s)->price(argc) == 0;
	}
	if (is("weight")) {
		Special s(argc);
		return hide<Weighed>(&s)->weight(argc) == 0;
	}
	if (is("item"))
		delete hide<Priced>(new Item(argc));
	if (is("special"))
		delete hide<Priced>(new Special(argc));
	if (is("int"))
		return hide(new Box<int>{1})->open(argc) == 0;
	if (is("long"))
		return hide(new Box<long>{1})->open(argc) == 0;
	if (is("early"))
		return early_one(argc) == 0;
	if (is("late"))
		return early_two(argc + 40) == 0;
	if (is("known"))
		return via_known(argc) == 0;
	if (is("checked"))
		return checked(argc) == 0;
	if (is("thrown")) {
		try {
			checked(argc + 75);
		} catch (std::exception &) {
		}
	}
	if (is("buy"))
		return buy(argc) == 0;
	if (is("steal"))
		return steal(argc) == 0;
	if (is("lambda"))
		return each(argc, [](int i) { sink(i); sink(i * 2); }) == 0;
	return 0;
}
