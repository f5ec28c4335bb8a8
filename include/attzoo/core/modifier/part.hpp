#pragma once
/// \file
/// What AnyMask and AnyScore are made of: masks and score modifiers of any type by one interface.

#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/core/modifier/symbol.hpp>
#include <attzoo/kernel/modifier/form.hpp>

#include <type_traits>
#include <typeinfo>
#include <utility>

namespace attzoo::core {

/// The CPU's forms.
template <class M>
auto form_of(std::type_identity<kernel::Mask>, const M& m, const Shape& n)
    -> decltype(kernel::make_mask(m.bind(n))) {
  return kernel::make_mask(m.bind(n));
}
template <class T, class M>
auto form_of(std::type_identity<kernel::Score<T>>, const M& m, const Shape& n)
    -> decltype(kernel::make_score<T>(m.template bind<T>(n))) {
  return kernel::make_score<T>(m.template bind<T>(n));
}

/// What both have in common.
class AnyPart {
 public:
  virtual ~AnyPart() = default;
  virtual void check(const Shape& n, const torch::Device& device) const = 0;
  virtual void tensors(Captured& out) const = 0;
  virtual bool is_raw() const = 0;
  virtual bool asks_places() const = 0;
  /// The form that a backend runs, known by its type: into `to`, which points at one. False, and
  /// nothing, if it has no such form. With `n` null it says whether it has.
  virtual bool form(const std::type_info& type, const Shape* n, void* to) const = 0;
};

/// A modifier of the type M, whose optional members are asked where they are. `Forms`: all that
/// backends have; M's is made by form_of(std::type_identity<Form>(), m, shape).
template <class M, class Interface, class... Forms>
class Part : public Interface {
 public:
  explicit Part(M of) : m(std::move(of)) {}
  void check([[maybe_unused]] const Shape& n,
             [[maybe_unused]] const torch::Device& device) const override {
    if constexpr (requires { m.check(n, device); }) m.check(n, device);
  }
  void tensors([[maybe_unused]] Captured& out) const override {
    if constexpr (requires { m.tensors(out); }) m.tensors(out);
  }
  bool is_raw() const override {
    if constexpr (requires { m.is_raw(); }) return m.is_raw();
    return false;
  }
  bool asks_places() const override {
    if constexpr (requires { m.asks_places(); }) return m.asks_places();
    return false;
  }
  bool form(const std::type_info& type, const Shape* n, void* to) const override {
    return (give<Forms>(type, n, to) || ...);
  }

 protected:
  M m;

 private:
  template <class Form>
  bool give([[maybe_unused]] const std::type_info& type, [[maybe_unused]] const Shape* n,
            [[maybe_unused]] void* to) const {
    if constexpr (requires { form_of(std::type_identity<Form>(), m, *n); }) {
      if (type != typeid(Form)) return false;
      if constexpr (requires { m.has_form(type); }) {
        if (!m.has_form(type)) return false;
      } else if constexpr (requires { m.fits_kernel(); }) {
        if (!m.fits_kernel()) return false;
      }
      if (n) *static_cast<Form*>(to) = form_of(std::type_identity<Form>(), m, *n);
      return true;
    }
    return false;
  }
};

}  // namespace attzoo::core
