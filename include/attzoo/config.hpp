#pragma once
/// \file
/// What is compiled where: in a program's own files, or once in the library attzoo::compiled, which
/// defines ATTZOO_COMPILED for itself and for all that link it.

/// Before functions outside of templates. Their definitions stand below all declarations of their
/// header, where ATTZOO_DEFINE_ and the layer's name is defined: in a program without the library
/// that is everywhere, else in one file of src/.
#ifdef ATTZOO_COMPILED
#define ATTZOO_API
#else
#define ATTZOO_API inline
#define ATTZOO_DEFINE_CORE
#define ATTZOO_DEFINE_FUNCTIONAL
#define ATTZOO_DEFINE_IO
#define ATTZOO_DEFINE_MODULE
#endif

/// Behind a mechanism, outside of namespaces: says that the library has the code of its
/// bases, so that programs which link it compile none; in src/module.cpp it makes that code.
/// Mechanisms of your own need it not. Behind one without a softmax: ATTZOO_COMPILED_RECURRENCE.
#ifdef ATTZOO_COMPILED
#ifdef ATTZOO_DEFINE_MECHANISMS
#define ATTZOO_MECHANISM_BASE template class
#else
#define ATTZOO_MECHANISM_BASE extern template class
#endif
#define ATTZOO_COMPILED_RECURRENCE(Impl)                                                \
  ATTZOO_MECHANISM_BASE torch::nn::Cloneable<attzoo::Impl>;                             \
  ATTZOO_MECHANISM_BASE attzoo::core::CallableModule<attzoo::Impl>;                     \
  ATTZOO_MECHANISM_BASE                                                                 \
  attzoo::core::Mechanism<attzoo::Impl, attzoo::Impl::Config, attzoo::Impl::BaseParts>; \
  ATTZOO_MECHANISM_BASE attzoo::Holder<attzoo::Impl>;
#define ATTZOO_COMPILED_MECHANISM(Impl) \
  ATTZOO_COMPILED_RECURRENCE(Impl)      \
  ATTZOO_MECHANISM_BASE attzoo::SelfAttention<attzoo::Impl, attzoo::Impl::Config>;
#else
#define ATTZOO_COMPILED_RECURRENCE(Impl)
#define ATTZOO_COMPILED_MECHANISM(Impl)
#endif
