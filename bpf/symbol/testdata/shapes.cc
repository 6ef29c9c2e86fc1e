// Functions of each kind of C++ name that a person would ask for.
#include <string>
#include <vector>

#define KEEP __attribute__((noinline, used))

namespace geo {

struct Point { int x, y; };

template <typename T> KEEP T largest(T a, T b) { asm volatile(""); return a > b ? a : b; }

class Shape {
public:
	KEEP Shape() { asm volatile(""); }
	KEEP virtual ~Shape() { asm volatile(""); }
	KEEP int area() const { asm volatile(""); return 1; }
	KEEP int area(int scale) const { asm volatile(""); return scale; }
	KEEP bool operator==(const Shape &o) const { asm volatile(""); return this == &o; }
	KEEP operator bool() const { asm volatile(""); return true; }
	template <typename... A> KEEP int fit(A... a) { asm volatile(""); return sizeof...(a); }
};

namespace {
KEEP int hidden(const char *s, unsigned long n) { asm volatile(""); return s[n]; }
} // namespace

KEEP std::string label(const std::vector<Point> &v) { asm volatile(""); return std::string(v.size(), 'x'); }

} // namespace geo

KEEP int toplevel(int x) { asm volatile(""); return x; }
extern "C" KEEP int c_linkage(int x) { asm volatile(""); return x; }

int main(int argc, char **argv) {
	geo::Shape s;
	auto inner = [&](int k) __attribute__((noinline)) { asm volatile(""); return k + s.area(); };
	std::vector<geo::Point> v(argc);
	return geo::largest(argc, 2) + geo::largest(1.5, 2.5) + s.area(argc) + (s == s) + bool(s) + s.fit(1, 'c', &v) + s.fit<>() +
		geo::hidden(argv[0], 0) + geo::label(v).size() + toplevel(1) + c_linkage(1) + inner(argc);
}
