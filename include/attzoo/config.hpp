#pragma once
/// \file
/// What is compiled where: in a program's own files, or once in the library attzoo::compiled, which
/// defines ATTZOO_COMPILED for itself and for all that link it.

/// Before functions outside of templates whose definitions lie in an .ipp file: a program that
/// links the library finds them there and compiles none.
#ifdef ATTZOO_COMPILED
#define ATTZOO_API
#else
#define ATTZOO_API inline
#endif

/// Behind a mechanism, outside of namespaces: says that the library has the code of its
/// bases, so that programs which link it compile none; in src/module.cpp it makes that code.
/// Mechanisms of your own need it not.
#if defined(ATTZOO_DEFINE_MECHANISMS)
#define ATTZOO_COMPILED_MECHANISM(Impl) ATTZOO_MECHANISM_BASES(, Impl)
#elif defined(ATTZOO_COMPILED)
#define ATTZOO_COMPILED_MECHANISM(Impl) ATTZOO_MECHANISM_BASES(extern, Impl)
#else
#define ATTZOO_COMPILED_MECHANISM(Impl)
#endif
#define ATTZOO_MECHANISM_BASES(Extern, Impl)                                       \
  Extern template class torch::nn::Cloneable<attzoo::Impl>;                        \
  Extern template class attzoo::core::CallableModule<attzoo::Impl>;                \
  Extern template class attzoo::SelfAttention<attzoo::Impl, attzoo::Impl::Config>; \
  Extern template class attzoo::Holder<attzoo::Impl>;
