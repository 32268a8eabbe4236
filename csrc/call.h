// Conversion of a binding's Python arguments: checked pointers, counts and strides, and the objects that must stay alive for them.
#pragma once
#include "objects.h"

#include <climits>
#include <string>
#include <type_traits>

using Obj = nb::handle;
using InArray = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;

// Rows and columns that an array may have: few enough that counters of rows, threads added, stay ints.
constexpr size_t kMaxExtent = size_t(1) << 29;

template <class T> struct Vector {
  T* p;
  int n;
};
template <class T> struct Matrix {
  T* p;
  int rows, cols;
  size_t ld;
};

// Whether two ranges of columns share an element. Two of one buffer, side by side, do not.
template <class A, class B> static bool overlap(const Matrix<A>& a, const Matrix<B>& b) {
  static_assert(sizeof(A) == sizeof(B), "strides are counted in elements");
  if (!a.rows || !b.rows || !a.cols || !b.cols) return false;
  const auto pa = reinterpret_cast<uintptr_t>(a.p) / sizeof(A), pb = reinterpret_cast<uintptr_t>(b.p) / sizeof(B);
  if (pa + size_t(a.rows - 1) * a.ld + size_t(a.cols) <= pb || pb + size_t(b.rows - 1) * b.ld + size_t(b.cols) <= pa) return false;
  if (a.ld != b.ld || a.rows == 1 || b.rows == 1) return true;
  const size_t shift = pa <= pb ? (pb - pa) % a.ld : (a.ld - (pa - pb) % a.ld) % a.ld;       // from a's first column to b's
  return shift < size_t(a.cols) || shift + size_t(b.cols) > a.ld;
}

// Turns the Python arguments of one call into pointers, and remembers them for the tape.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}
  Kept keep;

  [[noreturn]] void fail(const char* arg, const std::string& why) const { throw nb::value_error((std::string(op_) + ": " + arg + " " + why).c_str()); }
  void check(bool ok, const char* arg, const char* why) const { if (!ok) fail(arg, why); }

  template <class T> Vector<const T> vec(Obj o, const char* arg, size_t at_least) { return vector<const T, InArray>(o, arg, at_least); }
  template <class T> Vector<T> out_vec(Obj o, const char* arg, size_t at_least) { return vector<T, OutArray>(o, arg, at_least); }
  template <class T> Matrix<const T> mat(Obj o, const char* arg, int at_least_cols) { return matrix<const T, InArray>(o, arg, at_least_cols); }
  template <class T> Matrix<T> out_mat(Obj o, const char* arg, int at_least_cols) { return matrix<T, OutArray>(o, arg, at_least_cols); }
  const int* rows(Obj o) { return vec<int>(o, "rows", 1).p; }
  // Rows are written while others are read, by whichever thread: so the same row at the same place is the most that both may share.
  template <class A, class B> void apart(const Matrix<A>& out, const Matrix<B>& in, const char* arg, bool row_by_row = false) const {
    const bool same = static_cast<const void*>(out.p) == static_cast<const void*>(in.p) && out.ld == in.ld;
    check((row_by_row && same) || !overlap(out, in), arg, "must not share memory with what is read");
  }

  template <class T> T& handle(Obj o, const char* arg) {
    T* p = nullptr;
    if (!nb::try_cast<T*>(o, p) || !p) fail(arg, "is not an object of this op set");
    keep.objects.push_back(nb::borrow(o));
    return *p;
  }
  const WeightView& weight(Obj o, const char* arg, bool gated = false) {
    Weight& w = handle<Weight>(o, arg);
    check(w.gated == gated, arg, gated ? "must come from pack_gated" : "comes from pack_gated: only gated_linear reads it");
    return w.view;
  }
  // An activation that this weight can read.
  const Activation& reads(Obj o, const WeightView& w) {
    const Activation& x = handle<Activation>(o, "x");
    check(x.view.width == w.k, "x", "has not the width that the weight reads");
    check(w.kind <= kInt8 ? x.view.q != nullptr : x.view.f != nullptr, "x", "was made for weights of another kind: name all its readers");
    return x;
  }

  template <class A> A array(Obj o, const char* arg) {
    A a;
    if (!nb::try_cast<A>(o, a)) fail(arg, "is not an array on the CPU that may be used so");
    keep.arrays.push_back(nb::ndarray<nb::ro>(a));
    return a;
  }

 private:
  template <class T, class A> void check_type(const A& a, const char* arg) {
    using V = std::remove_const_t<T>;
    if (a.dtype() != nb::dtype<V>()) fail(arg, std::string("must be of type ") + (std::is_same_v<V, float> ? "float32" : std::is_same_v<V, int> ? "int32" : std::is_same_v<V, uint16_t> ? "uint16" : "uint32"));
    check(reinterpret_cast<uintptr_t>(a.data()) % alignof(V) == 0, arg, "must be aligned");
  }
  template <class T, class A> Vector<T> vector(Obj o, const char* arg, size_t at_least) {
    A a = array<A>(o, arg);
    check_type<T>(a, arg);
    check(a.ndim() == 1 && (a.shape(0) <= 1 || a.stride(0) == 1), arg, "must have one dimension and be contiguous");
    if (a.shape(0) < at_least) fail(arg, "must have at least " + std::to_string(at_least) + " elements");
    check(a.shape(0) <= kMaxExtent, arg, "is too long");
    return {static_cast<T*>(const_cast<void*>(static_cast<const void*>(a.data()))), int(a.shape(0))};
  }
  template <class T, class A> Matrix<T> matrix(Obj o, const char* arg, int at_least_cols) {
    A a = array<A>(o, arg);
    check_type<T>(a, arg);
    check(a.ndim() == 2 && (a.size() == 0 || a.shape(1) == 1 || a.stride(1) == 1), arg, "must have two dimensions and contiguous rows");
    check(a.shape(0) <= kMaxExtent && a.shape(1) <= kMaxExtent && (a.size() == 0 || a.shape(0) == 1 || a.stride(0) >= int64_t(a.shape(1))), arg, "has a layout that is not supported");
    if (int64_t(a.shape(1)) < at_least_cols) fail(arg, "must have at least " + std::to_string(at_least_cols) + " columns");
    return {static_cast<T*>(const_cast<void*>(static_cast<const void*>(a.data()))), int(a.shape(0)), int(a.shape(1)),
            a.size() == 0 || a.shape(0) == 1 ? size_t(a.shape(1)) : size_t(a.stride(0))};
  }
  const char* op_;
};

// ---- checks of several ops --------------------------------------------------------------------------------------------------
inline int smaller(int a, int b) { return a < b ? a : b; }
inline size_t size_at(int n) { return size_t(n < 0 ? 0 : n); }
template <class T> Matrix<T> row(const Vector<T>& v) { return {v.p, 1, v.n, size_t(v.n)}; }
