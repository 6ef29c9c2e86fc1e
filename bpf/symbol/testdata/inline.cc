#include <cstdio>
namespace shop {
volatile int sunk;
struct Item {
	int price;
	explicit Item(int p);
	int tax() const { return price * sunk / 7; }
	template <typename T> T as() const { sunk = 4; return T(price + sunk); }
};
Item::Item(int p) : price(p) { sunk = p; }
}
extern "C" __attribute__((noinline)) int via_constructor(int n) { shop::Item i(n); return i.price + 1; }
extern "C" __attribute__((noinline)) int via_method(const shop::Item *i) { return i->tax() + 2; }
extern "C" __attribute__((noinline)) long via_template(const shop::Item *i) { return i->as<long>() + 3; }
int main(int argc, char **) {
	shop::Item i(argc);
	return (via_constructor(argc) + via_method(&i) + via_template(&i)) < 0;
}
