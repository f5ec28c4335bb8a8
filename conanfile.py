"""Conan 2 recipe: `conan create .`, or with -o "attzoo/*:compiled=True" the library compiled once.

LibTorch is no Conan dependency: the recipe, and later the user's project, takes the one that attzoo's
CMake finds, by CMAKE_PREFIX_PATH, Torch_DIR, ATTZOO_TORCH (variables of the environment, too) or the
active Python.
"""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir


class AttzooConan(ConanFile):
    name = "attzoo"
    description = "A zoo of attention mechanisms for C++, on LibTorch"
    license = "MIT"
    topics = ("attention", "transformer", "libtorch", "pytorch")
    package_type = "static-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"compiled": [True, False]}
    default_options = {"compiled": False}
    exports_sources = ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*", "tests/support/*")

    def set_version(self):
        text = load(self, Path(self.recipe_folder, "include/attzoo/version.hpp"))
        self.version = ".".join(re.findall(r"#define ATTZOO_VERSION_[MP]\w+ (\d+)$", text, re.M))

    def configure(self):
        if not self.options.compiled:
            self.package_type = "header-library"

    def layout(self):
        cmake_layout(self)

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        if not self.info.options.compiled:
            self.info.clear()

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["ATTZOO_DEVELOP"] = False
        toolchain.cache_variables["ATTZOO_INSTALL_COMPILED"] = bool(self.options.compiled)
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        if self.options.compiled:
            cmake.build(target="attzoo_compiled")

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder, "licenses"))
        rmdir(self, Path(self.package_folder, "lib/pkgconfig"))  # names this machine's LibTorch

    def package_info(self):
        # attzoo's own CMake package makes the targets: it finds LibTorch on the user's machine.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["share/cmake/attzoo"]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = ["lib"] if self.options.compiled else []
        if self.options.compiled:
            self.cpp_info.libs = ["attzoo"]
            self.cpp_info.defines = ["ATTZOO_COMPILED"]
