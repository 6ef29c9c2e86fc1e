package demangle

import "strings"

// words are what forms can hold that the mangled name does not spell out: what
// the mangling abbreviates, and the demangler's own words.
const words = `
std allocator basic_string string basic_istream istream basic_ostream ostream basic_iostream iostream char_traits
signed unsigned char short int long float double bool void wchar_t char8_t char16_t char32_t __int128 __float128 half
decimal32 decimal64 decimal128 auto decltype nullptr_t _Float _Float16 _Float32 _Float64 _Float128 _Float32x _Float64x
_Accum _Fract _Sat _BitInt bfloat16_t std::bfloat16_t __bf16 ellipsis
const volatile restrict __restrict noexcept throw transaction_safe _Complex _Imaginary __vector vector_size struct union enum
operator new delete co_await sizeof alignof typeid typename template class requires static_cast dynamic_cast const_cast
reinterpret_cast true false nullptr this concept friend objcproto
anonymous namespace lambda unnamed type default arg clone abi vtable for VTT typeinfo name fn guard variable reference temporary
virtual non thunk covariant return to construction in TLS init function wrapper java Class initialization hidden alias transaction
global constructors destructors keyed invocation block string literal template parameter object alloc_token initializer module attached
pack expansion enable_if thread local routine vector cast offset resource parm ull ABCDEF template_template
__alignof__ __uuidof _GLOBAL_ __alloc_token_ Ua9enable_ifI
i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize f16 f32 f64 f128 str mut dyn unsafe extern closure shim
`

var own = func() map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}()

// Own reports whether a word of a form may be there although the mangled name
// does not spell it out.
func Own(word string) bool { return own[word] }

// OwnPart is Own for what may be a part of the word.
func OwnPart(part string) bool { return strings.Contains(words, part) }
