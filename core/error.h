#pragma once
#include <stdexcept>
#include <string>

namespace hedgehog {

/// Every failure this library reports. The message is one sentence for a person: what, where, expected, got, what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A wrong argument of an op or a module: shape, dtype, attribute.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A dtype that a kernel does not compute in; the call adds the op's name.
class DtypeError : public ShapeError {
 public:
  using ShapeError::ShapeError;
};

/// A wrong command line or configuration; the program exits with 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A missing, damaged or foreign file; the program exits with 3.
class FileError : public Error {
 public:
  using Error::Error;
};

/// The output could not be written (full disk, no permission); what was there before is untouched. Exits with 1.
class WriteError : public Error {
 public:
  using Error::Error;
};

}  // namespace hedgehog
